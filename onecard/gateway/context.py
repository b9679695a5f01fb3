"""What every route needs, in one object that hangs on the aiohttp application."""

from dataclasses import dataclass

from aiohttp import web

from onecard.engines.api import Node, NodeControl
from onecard.gateway.admission import Admission
from onecard.gateway.metrics import Metrics
from onecard.gateway.router import ModelRouter
from onecard.gateway.routes.route import Routes
from onecard.registry.spec import ServerSpec


@dataclass
class Gateway:
    """The parts that routes and middleware share. Times in seconds."""

    node: Node
    server: ServerSpec
    metrics: Metrics
    router: ModelRouter
    admission: Admission
    keep_alive: float
    """A stream that has been quiet for this long gets an SSE comment, so that proxies don't cut it."""
    body_timeout: float
    """A request body must be there within this time."""
    routes: Routes
    control: NodeControl | None = None
    """What operators may do; None where the node takes no orders."""

    def configure(self, server: ServerSpec) -> None:
        """From the next request on, serve as `server` says: keys, origins, the queue's length."""
        self.server = server
        self.admission.limit = server.max_queued_requests


GATEWAY = web.AppKey("gateway", Gateway)
REQUEST_ID = web.RequestKey("request_id", str)
MEANT = web.RequestKey("meant", str)
"""The table's path that was meant by another spelling."""
