"""What every route needs, in one object that hangs on the aiohttp application."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from aiohttp import web

from onecard.engines.api import Node

if TYPE_CHECKING:
    from onecard.gateway.admission import Admission
    from onecard.gateway.router import ModelRouter
    from onecard.registry.spec import ServerSpec


class GatewayMetrics(Protocol):
    """What the gateway reports, and where `/metrics` gets its text from."""

    def render(self) -> bytes: ...

    def http(
        self,
        handler: str,
        method: str,
        status: int,
        seconds: float,
        request_bytes: int | None = None,
        response_bytes: int | None = None,
    ) -> None: ...

    def rejected(self, model_name: str, reason: str) -> None: ...


@dataclass(frozen=True)
class Gateway:
    """The parts that routes and middleware share. Times in seconds."""

    node: Node
    server: "ServerSpec"
    metrics: GatewayMetrics
    router: "ModelRouter"
    admission: "Admission"
    keep_alive: float
    """A stream that has been quiet for this long gets an SSE comment, so that proxies don't cut it."""
    body_timeout: float
    """A request body must be there within this time."""


GATEWAY = web.AppKey("gateway", Gateway)
REQUEST_ID = web.RequestKey("request_id", str)
