"""The aiohttp application: the table of routes and middleware wired together, no logic."""

import logging

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from onecard.engines.api import Node, NodeControl
from onecard.gateway.admission import Admission
from onecard.gateway.context import GATEWAY, Gateway
from onecard.gateway.http.cors import add_cors_headers
from onecard.gateway.http.middleware import add_request_id, answer_errors, observe
from onecard.gateway.metrics import Metrics
from onecard.gateway.router import ModelRouter
from onecard.gateway.routes.front_door import ANY_PATH, elsewhere
from onecard.gateway.routes.route import Routes
from onecard.gateway.routes.table import ROUTES
from onecard.registry.spec import Registry

aiohttp_log = logging.getLogger(__name__)
"""For what goes wrong in the HTTP layer beneath the application; not for what clients send wrongly."""
KEEP_ALIVE_SECONDS = 10.0
BODY_TIMEOUT_SECONDS = 60.0


def create_app(
    node: Node,
    registry: Registry,
    metrics: Metrics,
    *,
    control: NodeControl | None = None,
    keep_alive: float = KEEP_ALIVE_SECONDS,
    body_timeout: float = BODY_TIMEOUT_SECONDS,
    routes: Routes = ROUTES,
) -> web.Application:
    """An application that serves `node` as `registry.server` says; times in seconds.

    Operators' requests go to `control`; without one they are answered 501. `app[GATEWAY].configure` changes
    what may change while it serves.
    The caller starts, drains and stops the node. Its `AppRunner` must have `handler_cancellation=True`: a
    client that hangs up then cancels its handler, streamed or not, which aborts what was asked for.
    """
    server = registry.server
    app = web.Application(middlewares=[observe, answer_errors], client_max_size=server.max_body_bytes)
    admission = Admission(server.max_queued_requests, metrics)
    router = ModelRouter(node, metrics)
    app[GATEWAY] = Gateway(
        node, server, metrics, router, admission, keep_alive, body_timeout, routes, control
    )
    app.on_response_prepare.extend([add_request_id, add_cors_headers])
    app.add_routes([web.route(row.method, row.path, row.handler) for row in routes.rows])
    app.router.add_route("*", ANY_PATH, elsewhere)
    return app


class _ClientFaults(logging.Filter):
    """Drops what is the client's fault: it has been answered 400, or hung up while its answer was written.
    aiohttp would write a traceback for each; port scans and TLS on a plain port must not fill the disk."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, (HttpProcessingError, web.RequestPayloadError, ConnectionError))


aiohttp_log.addFilter(_ClientFaults())
