"""What every route needs, in one object that hangs on the aiohttp application."""

from dataclasses import dataclass

from aiohttp import web

from onecard.engines.api import Node, NodeControl
from onecard.gateway.admission import Admission
from onecard.gateway.http.connections import Connections
from onecard.gateway.loading import LoadingNode
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
    connections: Connections
    control: NodeControl | None = None
    """What operators may do; None where the node takes no orders."""
    loading: LoadingNode | None = None
    """What stands for the node until it has been loaded."""

    def serve(self, node: Node, control: NodeControl | None) -> None:
        """The node has been loaded: from the next request on it answers."""
        self.node, self.control, self.loading = node, control, None
        self.router = ModelRouter(node, self.metrics)

    def configure(self, server: ServerSpec) -> None:
        """From the next request on, serve as `server` says: keys, origins, queues, sizes."""
        self.server = server
        self.admission.limit = server.max_queued_requests
        self.admission.most_sequences = server.max_sequences_per_request


GATEWAY = web.AppKey("gateway", Gateway)
REQUEST_ID = web.RequestKey("request_id", str)
MEANT = web.RequestKey("meant", str)
"""The table's path that was meant by another spelling."""
