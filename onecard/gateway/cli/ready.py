"""What `serve` says once it answers: where, what, and a line to try."""

import json
import shlex
from collections.abc import Sequence

from onecard.engines.api import ModelInfo
from onecard.gateway.routes.table import ROUTES
from onecard.registry.spec import ServerSpec

ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Addresses to listen on, and the ones to reach them at."""


def base_url(host: str, port: int) -> str:
    """Where a client on this machine reaches a server that listens on `host:port`."""
    host = ANYWHERE.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def announcement(server: ServerSpec, models: Sequence[ModelInfo], port: int) -> str:
    """Several lines for the terminal; `port` is the real one where the registry asked for any."""
    url = base_url(server.host, port)
    names = ", ".join(model.name for model in models)
    return f"ready on {url}: {names}\ntry it:\n  {curl(server, models, url)}"


def curl(server: ServerSpec, models: Sequence[ModelInfo], url: str) -> str:
    """A command that asks something: the first route with an example whose task a model does."""
    asked = (
        (row.path, {"model": model.name, **row.example})
        for row in ROUTES.rows
        for model in models
        if row.example is not None and row.task in model.tasks
    )
    path, body = next(asked, ("/tokenize", {"model": models[0].name, "prompt": "Paris"}))
    headers = "-H 'Content-Type: application/json'"
    if server.api_keys:
        headers += ' -H "Authorization: Bearer $ONECARD_API_KEY"'
    return f"curl {url}{path} {headers} -d {shlex.quote(json.dumps(body))}"
