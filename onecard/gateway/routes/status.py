"""`GET /admin/status`: what `onecard ps` shows."""

from dataclasses import asdict

from aiohttp import web

from onecard.gateway.body import json_response
from onecard.gateway.context import GATEWAY


async def admin_status(request: web.Request) -> web.Response:
    return json_response(asdict(request.app[GATEWAY].node.status()))
