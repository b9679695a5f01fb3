"""What every route needs, in one object that hangs on the aiohttp application."""

from dataclasses import dataclass

from aiohttp import web

from onecard.engines.api import Node
from onecard.gateway.admission import Admission
from onecard.gateway.reporting import GatewayMetrics
from onecard.gateway.router import ModelRouter
from onecard.registry.spec import ServerSpec


@dataclass(frozen=True)
class Gateway:
    """The parts that routes and middleware share. Times in seconds."""

    node: Node
    server: ServerSpec
    metrics: GatewayMetrics
    router: ModelRouter
    admission: Admission
    keep_alive: float
    """A stream that has been quiet for this long gets an SSE comment, so that proxies don't cut it."""
    body_timeout: float
    """A request body must be there within this time."""


GATEWAY = web.AppKey("gateway", Gateway)
REQUEST_ID = web.RequestKey("request_id", str)
