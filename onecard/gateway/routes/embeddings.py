"""`POST /v1/embeddings`."""

import base64
from typing import Any

import numpy as np
from aiohttp import web

from onecard.engines.api import Embedder
from onecard.gateway.answers.generation import Identity
from onecard.gateway.context import GATEWAY
from onecard.gateway.http.body import json_list, large_json_response, parse
from onecard.gateway.schemas.embeddings import EmbeddingRequest

BYTES_OF_FLOAT = 12
"""As JSON; base64 takes half of it."""


async def embeddings(request: web.Request) -> web.Response:
    gateway = request.app[GATEWAY]
    asked = await parse(request, EmbeddingRequest)
    engine: Embedder = gateway.router.engine_for("embed", asked.model)
    gateway.admission.check_size(len(asked.input), "input")
    identity = Identity.new("embd", engine.info.name)
    with gateway.admission.admit(engine.info.name) as ticket:
        result = await engine.embed(asked.to_engine(identity.id), ticket.begun)
    vectors = np.ascontiguousarray(result.vectors, dtype="<f4")
    # orjson writes rows of float32 itself, with the fewest digits that tell them apart.
    rows: Any = map(_base64, vectors) if asked.encoding_format == "base64" else vectors
    return await large_json_response(
        BYTES_OF_FLOAT * vectors.size,
        lambda: {
            "id": identity.id,
            "object": "list",
            "created": identity.created,
            "model": identity.model,
            "data": json_list(
                {"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)
            ),
            "usage": {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens},
        },
    )


def _base64(row: np.ndarray) -> str:
    return base64.b64encode(row.data).decode("ascii")
