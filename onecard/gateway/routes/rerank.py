"""`POST /rerank` and `POST /v1/rerank`."""

from typing import Any

from aiohttp import web

from onecard.engines.api import Reranker
from onecard.gateway.answers.generation import Identity
from onecard.gateway.context import GATEWAY
from onecard.gateway.http.body import json_list, large_json_response, parse
from onecard.gateway.schemas.rerank import RerankBody


async def rerank(request: web.Request) -> web.Response:
    gateway = request.app[GATEWAY]
    asked = await parse(request, RerankBody)
    engine: Reranker = gateway.router.engine_for("rerank", asked.model)
    gateway.admission.check_size(len(asked.documents), "documents")
    identity = Identity.new("rerank", engine.info.name)
    with gateway.admission.admit(engine.info.name) as ticket:
        result = await engine.rerank(asked.to_engine(identity.id), ticket.begun)
    scores = result.scores.tolist()
    best = sorted(range(len(scores)), key=lambda index: -scores[index])[: asked.top_n or None]
    return await large_json_response(
        sum(map(len, asked.documents)),
        lambda: {
            "id": identity.id,
            "object": "list",
            "created": identity.created,
            "model": identity.model,
            "results": json_list(_result(asked, index, scores[index]) for index in best),
            "usage": {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens},
        },
    )


def _result(asked: RerankBody, index: int, score: float) -> dict[str, Any]:
    result: dict[str, Any] = {"index": index, "relevance_score": score}
    if asked.return_documents:
        result["document"] = {"text": asked.documents[index]}
    return result
