"""`POST /v1/embeddings`."""

import base64
from typing import Any

import numpy as np
from aiohttp import web

from onecard.engines.api import Embedder
from onecard.gateway.answers.identity import Identity
from onecard.gateway.context import GATEWAY
from onecard.gateway.http.body import json_response, parse
from onecard.gateway.schemas.embeddings import EmbeddingRequest


async def embeddings(request: web.Request) -> web.Response:
    gateway = request.app[GATEWAY]
    asked = await parse(request, EmbeddingRequest)
    engine: Embedder = gateway.router.engine_for("embed", asked.model)
    identity = Identity.new("embd", engine.info.name)
    with gateway.admission.admit(engine.info.name) as ticket:
        result = await engine.embed(asked.to_engine(identity.id), ticket.begun)
    vectors = np.ascontiguousarray(result.vectors, dtype="<f4")
    encode = _base64 if asked.encoding_format == "base64" else _floats
    return json_response(
        {
            "id": identity.id,
            "object": "list",
            "created": identity.created,
            "model": identity.model,
            "data": [
                {"object": "embedding", "index": i, "embedding": encode(row)} for i, row in enumerate(vectors)
            ],
            "usage": {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens},
        }
    )


def _base64(row: np.ndarray) -> str:
    return base64.b64encode(row.data).decode("ascii")


def _floats(row: np.ndarray) -> Any:
    # orjson writes float32 arrays itself, with the fewest digits that tell them apart.
    return row
