"""What `serve` says once it answers: where, what, and a line to try."""

import json
import shlex

from onecard.registry.spec import ModelSpec, Registry

ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Addresses to listen on, and the ones to reach them at."""


def base_url(host: str, port: int) -> str:
    """Where a client on this machine reaches a server that listens on `host:port`."""
    host = ANYWHERE.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def announcement(registry: Registry, port: int) -> str:
    """Several lines for the terminal; `port` is the real one where the registry asked for any."""
    url = base_url(registry.server.host, port)
    names = ", ".join(model.name for model in registry.models)
    return f"ready on {url}: {names}\ntry it:\n  {curl(registry, url)}"


def curl(registry: Registry, url: str) -> str:
    """A command that asks the first language model, else the first model, something."""
    model = next((model for model in registry.models if model.kind == "llm"), registry.models[0])
    path, body = _question(model)
    headers = "-H 'Content-Type: application/json'"
    if registry.server.api_keys:
        headers += ' -H "Authorization: Bearer $ONECARD_API_KEY"'
    return f"curl {url}{path} {headers} -d {shlex.quote(json.dumps(body))}"


def _question(model: ModelSpec) -> tuple[str, dict[str, object]]:
    if model.kind == "llm":
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        return "/v1/chat/completions", {
            "model": model.name,
            "messages": messages,
            "temperature": 0,
        }
    return "/v1/embeddings", {"model": model.name, "input": "Paris is the capital of France."}
