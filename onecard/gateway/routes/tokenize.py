"""`POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, for models of every kind."""

from aiohttp import web

from onecard.engines.api import Tokenizing
from onecard.gateway.context import GATEWAY
from onecard.gateway.http.body import json_response, parse
from onecard.gateway.schemas.tokenize import DetokenizeRequest, TokenizeRequest


async def tokenize(request: web.Request) -> web.Response:
    asked = await parse(request, TokenizeRequest)
    engine: Tokenizing = request.app[GATEWAY].router.engine_for(None, asked.model)
    prompt, add_special_tokens = asked.to_engine()
    tokens = await engine.tokenize(prompt, add_special_tokens)
    return json_response(
        {
            "count": len(tokens),
            "max_model_len": engine.info.max_model_len,
            "tokens": tokens,
            "token_strs": await engine.token_strings(tokens) if asked.return_token_strs else None,
        }
    )


async def detokenize(request: web.Request) -> web.Response:
    asked = await parse(request, DetokenizeRequest)
    engine: Tokenizing = request.app[GATEWAY].router.engine_for(None, asked.model)
    return json_response({"prompt": await engine.detokenize(asked.tokens)})


async def tokenizer_info(request: web.Request) -> web.Response:
    engine: Tokenizing = request.app[GATEWAY].router.engine_for(None, request.query.get("model"))
    return json_response(engine.tokenizer_info())
