"""What the tests of the command share: its outcome, and a small server for it to talk to."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

Handler = Callable[[web.Request], Any]


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@dataclass
class FakeServer:
    """Answers as the test says; remembers what it was asked. Runs on a thread with a loop of its own."""

    handlers: dict[str, Handler] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.can_read_body:
            self.bodies.append(json.loads(await request.read()))
        if request.path not in self.handlers:
            return web.Response(status=404, text="<html>not here</html>")
        response: web.StreamResponse = await self.handlers[request.path](request)
        return response

    def stream(self, path: str, *events: dict[str, Any]) -> None:
        """Answer `path` with these server-sent events."""

        async def handler(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            for event in events:
                await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            await response.write(b": keep-alive\n\ndata: [DONE]\n\n")
            return response

        self.handlers[path] = handler

    def json(self, path: str, body: object, status: int = 200) -> None:
        async def handler(request: web.Request) -> web.StreamResponse:
            return web.json_response(body, status=status)

        self.handlers[path] = handler


def delta(text: str) -> dict[str, Any]:
    """One piece of a streamed chat answer."""
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


def write_registry(folder: Path, text: str) -> Path:
    path = folder / "registry.yaml"
    path.write_text(text)
    return path
