"""Every route of the server, one row each.

To add an endpoint: a row here, its schemas, its handler in a file of `routes`; for a new task, what an engine
does for it in a file of `engines.api`.
"""

from functools import partial

from onecard.gateway.routes import (
    admin,
    chat,
    completions,
    embeddings,
    front_door,
    health,
    models,
    rerank,
    tokenize,
)
from onecard.gateway.routes.route import Route, Routes
from onecard.gateway.schemas import admin as orders
from onecard.gateway.schemas import responses
from onecard.gateway.schemas.chat import ChatRequest
from onecard.gateway.schemas.completions import CompletionRequest
from onecard.gateway.schemas.embeddings import EmbeddingRequest
from onecard.gateway.schemas.rerank import RerankAnswer, RerankBody
from onecard.gateway.schemas.tokenize import DetokenizeRequest, TokenizeRequest

get, post = partial(Route, "GET"), partial(Route, "POST")
probe = partial(Route, "GET", access="open")
look, order = partial(Route, "GET", access="admin"), partial(Route, "POST", access="admin")

QUESTION = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
RANKING = {"query": "What is the capital of France?", "documents": ["Bananas.", "Paris."]}
HEALTH = responses.HealthAnswer

# fmt: off
ROWS = (
    post("/v1/chat/completions", chat.chat_completions, "Continue a conversation", responses.ChatAnswer,
         ChatRequest, responses.ChatChunk, task="generate", example=QUESTION),
    post("/v1/completions", completions.completions, "Continue prompts", responses.CompletionAnswer,
         CompletionRequest, responses.CompletionChunk, task="generate", example={"prompt": "Paris is"}),
    post("/v1/embeddings", embeddings.embeddings, "Embed texts", responses.EmbeddingAnswer, EmbeddingRequest,
         task="embed", example={"input": "Paris is the capital of France."}),
    post("/v1/rerank", rerank.rerank, "Sort documents by how well they answer a query", RerankAnswer,
         RerankBody, task="rerank", example=RANKING),
    post("/rerank", rerank.rerank, "The same", RerankAnswer, RerankBody, task="rerank"),
    post("/tokenize", tokenize.tokenize, "Text or messages to token ids", responses.TokenizeAnswer,
         TokenizeRequest),
    post("/detokenize", tokenize.detokenize, "Token ids to text", responses.DetokenizeAnswer,
         DetokenizeRequest),
    get("/tokenizer_info", tokenize.tokenizer_info, "vLLM's: what a tokenizer_config.json says",
        responses.TokenizerInfo, query=("model",)),
    get("/v1/models", models.list_models, "What is served", responses.ModelList),
    get("/v1/models/{id:.+}", models.get_model, "One model, by name or alias", responses.ModelCard),
    probe("/", front_door.root, "Who is here, and where is what", responses.RootAnswer),
    probe("/health", health.ready, "200 while new requests are served, else 503", HEALTH),
    probe("/health/ready", health.ready, "The same", HEALTH),
    probe("/v1/health/ready", health.ready, "The same", HEALTH),
    probe("/readyz", health.ready, "The same", HEALTH),
    probe("/health/live", health.live, "200 while the process answers", HEALTH),
    probe("/v1/health/live", health.live, "The same", HEALTH),
    probe("/healthz", health.live, "The same", HEALTH),
    probe("/version", health.version, "Which onecard this is", responses.VersionAnswer),
    probe("/metrics", health.metrics, "Prometheus text"),
    get("/openapi.json", health.openapi, "This document", early=True),
    probe("/ping", health.ping, "An empty 200"),
    post("/ping", health.ping, "The same", access="open"),
    look("/admin/status", admin.status, "Cards, models and their memory", responses.StatusAnswer,
         early=True),
    look("/admin/pool", admin.pool, "The live ledger of each card's memory", orders.PoolAnswer),
    order("/models/{name:.+}/sleep", admin.sleep_model,
          "Give a model's memory to the others; a request wakes it", orders.ModelSleepAnswer,
          orders.SleepRequest, needs_body=False, query=("level",)),
    order("/models/{name:.+}/unload", admin.unload_model, "Sleep at level 2", orders.ModelSleepAnswer),
    order("/models/{name:.+}/wake_up", admin.wake_model, "Wake a model", orders.ModelWakeAnswer),
    order("/models/{name:.+}/load", admin.wake_model, "The same", orders.ModelWakeAnswer),
    order("/sleep", admin.sleep, "vLLM's: one model, or all that aren't pinned", orders.SleepAnswer,
          orders.SleepRequest, needs_body=False, query=("level", "model", "mode")),
    order("/wake_up", admin.wake_up, "vLLM's: one model, or all", orders.WakeAnswer, query=("model", "tags")),
    look("/is_sleeping", admin.is_sleeping, "vLLM's: one model, or any", orders.IsSleepingAnswer,
         query=("model",)),
    order("/-/reload", admin.reload, "Read the registry again and apply it", orders.ReloadAnswer),
)
# fmt: on

ROUTES = Routes(ROWS)
