"""`GET /v1/models` and `GET /v1/models/{id}`: OpenAI's cards with vLLM's extra fields."""

from typing import Any

from aiohttp import web

from onecard.engines.api import ModelInfo
from onecard.gateway.context import GATEWAY
from onecard.gateway.http.body import json_response


async def list_models(request: web.Request) -> web.Response:
    models = request.app[GATEWAY].router.models()
    cards = [_card(info, name) for info in models for name in (info.name, *info.aliases)]
    return json_response({"object": "list", "data": cards})


async def get_model(request: web.Request) -> web.Response:
    router, asked = request.app[GATEWAY].router, request.match_info["id"]
    # A name may begin with a slash; one too many stands there as often.
    name = asked if router.knows(asked) else asked.strip("/")
    return json_response(_card(router.info(name), name))


def _card(info: ModelInfo, name: str) -> dict[str, Any]:
    """Under an alias, `root` is the model that it stands for."""
    return {
        "id": name,
        "object": "model",
        "created": info.created,
        "owned_by": "onecard",
        "root": info.root if name == info.name else info.name,
        "parent": None,
        "max_model_len": info.max_model_len,
        "kind": info.kind,
        "tasks": sorted(info.tasks),
        "aliases": list(info.aliases),
        "default_sampling": info.default_sampling,
        "permission": [_permission(info)],
    }


def _permission(info: ModelInfo) -> dict[str, Any]:
    # OpenAI dropped this object; older clients still read it.
    return {
        "id": f"modelperm-{info.name}",
        "object": "model_permission",
        "created": info.created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
