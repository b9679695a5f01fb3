"""The aiohttp application: the table of routes and middleware wired together, no logic."""

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web

from onecard.engines.api import Node, NodeControl
from onecard.gateway.admission import Admission
from onecard.gateway.context import GATEWAY, Gateway
from onecard.gateway.http.body import expectation
from onecard.gateway.http.connections import Connections
from onecard.gateway.http.cors import add_cors_headers
from onecard.gateway.http.listen import room_for_connections
from onecard.gateway.http.middleware import add_request_id, answer_begins, answer_errors, observe
from onecard.gateway.loading import LoadingNode
from onecard.gateway.metrics import Metrics
from onecard.gateway.metrics.event_loop import watch_lag
from onecard.gateway.router import ModelRouter
from onecard.gateway.routes.front_door import ANY_PATH, elsewhere
from onecard.gateway.routes.route import Routes
from onecard.gateway.routes.table import ROUTES
from onecard.registry.spec import Registry

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
    connections: Connections | None = None,
) -> web.Application:
    """An application that serves `node` as `registry.server` says, by `http.listen`; times in seconds.

    Where `node` is a `LoadingNode`, what needs models is answered 503 until `app[GATEWAY].serve` is called.
    Operators' requests go to `control`; without one they are answered 501. `app[GATEWAY].configure` changes
    what may change while it serves.
    The caller starts, drains and stops the node. `connections` bounds who may be connected; by default the
    process's limit of open files does.
    """
    server = registry.server
    app = web.Application(middlewares=[observe, answer_errors], client_max_size=server.max_body_bytes)
    admission = Admission(server.max_queued_requests, metrics, server.max_sequences_per_request)
    router = ModelRouter(node, metrics)
    connections = Connections(room_for_connections()) if connections is None else connections
    loading = node if isinstance(node, LoadingNode) else None
    app[GATEWAY] = Gateway(
        node,
        server,
        metrics,
        router,
        admission,
        keep_alive,
        body_timeout,
        routes,
        connections,
        control,
        loading,
    )
    app.on_response_prepare.extend([add_request_id, add_cors_headers, answer_begins])
    app.cleanup_ctx.append(_watches)
    app.add_routes(
        [web.route(row.method, row.path, row.handler, expect_handler=expectation) for row in routes.rows]
    )
    app.router.add_route("*", ANY_PATH, elsewhere, expect_handler=expectation)
    return app


async def _watches(app: web.Application) -> AsyncIterator[None]:
    """What runs beside the requests for as long as they are taken."""
    gateway = app[GATEWAY]
    watches = [
        asyncio.create_task(gateway.connections.watch()),
        asyncio.create_task(watch_lag(gateway.metrics.event_loop_lag)),
    ]
    yield
    for watch in watches:
        watch.cancel()
    await asyncio.gather(*watches, return_exceptions=True)
