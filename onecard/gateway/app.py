"""The aiohttp application: routes and middleware wired together, no logic."""

from aiohttp import web

from onecard.engines.api import Node, NodeControl
from onecard.gateway.admission import Admission
from onecard.gateway.context import GATEWAY, Gateway
from onecard.gateway.cors import add_cors_headers
from onecard.gateway.middleware import add_request_id, answer_errors, observe
from onecard.gateway.reporting import GatewayMetrics
from onecard.gateway.router import ModelRouter
from onecard.gateway.routes import admin, chat, completions, embeddings, health, models, status, tokenize
from onecard.registry.spec import Registry

KEEP_ALIVE_SECONDS = 10.0
BODY_TIMEOUT_SECONDS = 60.0


def create_app(
    node: Node,
    registry: Registry,
    metrics: GatewayMetrics,
    *,
    control: NodeControl | None = None,
    keep_alive: float = KEEP_ALIVE_SECONDS,
    body_timeout: float = BODY_TIMEOUT_SECONDS,
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
    app[GATEWAY] = Gateway(
        node, server, metrics, ModelRouter(node, metrics), admission, keep_alive, body_timeout, control
    )
    app.on_response_prepare.extend([add_request_id, add_cors_headers])
    app.add_routes([*_routes(), *_admin_routes()])
    return app


def _routes() -> list[web.RouteDef]:
    return [
        web.post("/v1/chat/completions", chat.chat_completions),
        web.post("/v1/completions", completions.completions),
        web.post("/v1/embeddings", embeddings.embeddings),
        web.post("/tokenize", tokenize.tokenize),
        web.post("/detokenize", tokenize.detokenize),
        web.get("/v1/models", models.list_models),
        web.get("/v1/models/{id:.+}", models.get_model),
        web.get("/health", health.ready),
        *(web.get(path, health.live) for path in ("/health/live", "/v1/health/live", "/healthz")),
        *(web.get(path, health.ready) for path in ("/health/ready", "/v1/health/ready", "/readyz")),
        web.get("/version", health.version),
        web.get("/metrics", health.metrics),
        web.get("/openapi.json", health.openapi),
        web.get("/ping", health.ping),
        web.post("/ping", health.ping),
    ]


def _admin_routes() -> list[web.RouteDef]:
    return [
        web.get("/admin/status", status.admin_status),
        web.get("/admin/pool", admin.pool),
        web.post("/models/{name:.+}/sleep", admin.sleep_model),
        web.post("/models/{name:.+}/unload", admin.unload_model),
        web.post("/models/{name:.+}/wake_up", admin.wake_model),
        web.post("/models/{name:.+}/load", admin.wake_model),
        web.post("/sleep", admin.sleep),
        web.post("/wake_up", admin.wake_up),
        web.get("/is_sleeping", admin.is_sleeping),
        web.post("/-/reload", admin.reload),
    ]
