"""`/openapi.json`, generated from the pydantic models of requests and answers."""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from onecard.gateway.body import PRIORITY_HEADER
from onecard.gateway.schemas import admin, responses
from onecard.gateway.schemas.chat import ChatRequest
from onecard.gateway.schemas.completions import CompletionRequest
from onecard.gateway.schemas.embeddings import EmbeddingRequest
from onecard.gateway.schemas.tokenize import DetokenizeRequest, TokenizeRequest
from onecard.gateway.version import VERSION

Mode = Literal["validation", "serialization"]
REFS = "#/components/schemas/{model}"
PRIORITY_PARAMETER: dict[str, Any] = {
    "name": PRIORITY_HEADER,
    "in": "header",
    "required": False,
    "description": "The request's `priority` where the body has none; lower goes first.",
    "schema": {"type": "integer"},
}


@dataclass(frozen=True)
class Operation:
    """One route: what it takes and gives."""

    method: str
    path: str
    summary: str
    answer: type[BaseModel] | None = None
    request: type[BaseModel] | None = None
    chunk: type[BaseModel] | None = None
    """What the events of a streamed answer hold."""
    needs_body: bool = True
    query: tuple[str, ...] = ()
    """Parameters in the query, all of which may be left out."""


OPERATIONS = (
    Operation(
        "post",
        "/v1/chat/completions",
        "Continue a conversation",
        responses.ChatAnswer,
        ChatRequest,
        responses.ChatChunk,
    ),
    Operation(
        "post",
        "/v1/completions",
        "Continue prompts",
        responses.CompletionAnswer,
        CompletionRequest,
        responses.CompletionChunk,
    ),
    Operation("post", "/v1/embeddings", "Embed texts", responses.EmbeddingAnswer, EmbeddingRequest),
    Operation(
        "post", "/tokenize", "Text or messages to token ids", responses.TokenizeAnswer, TokenizeRequest
    ),
    Operation("post", "/detokenize", "Token ids to text", responses.DetokenizeAnswer, DetokenizeRequest),
    Operation("get", "/v1/models", "What is served", responses.ModelList),
    Operation("get", "/v1/models/{id}", "One model, by name or alias", responses.ModelCard),
    Operation("get", "/health", "200 while new requests are served, else 503", responses.HealthAnswer),
    Operation("get", "/health/ready", "The same", responses.HealthAnswer),
    Operation("get", "/health/live", "200 as long as a restart would not help", responses.HealthAnswer),
    Operation("get", "/version", "Which onecard this is", responses.VersionAnswer),
    Operation("get", "/metrics", "Prometheus text"),
    Operation("get", "/openapi.json", "This document"),
    Operation("get", "/admin/status", "Cards, models and their memory", responses.StatusAnswer),
    Operation("get", "/admin/pool", "The live ledger of each card's memory", admin.PoolAnswer),
    Operation(
        "post",
        "/models/{name}/sleep",
        "Give a model's memory to the others; a request wakes it",
        admin.ModelSleepAnswer,
        admin.SleepRequest,
        needs_body=False,
        query=("level",),
    ),
    Operation("post", "/models/{name}/unload", "Sleep at level 2", admin.ModelSleepAnswer),
    Operation("post", "/models/{name}/wake_up", "Wake a model", admin.ModelWakeAnswer),
    Operation("post", "/models/{name}/load", "The same", admin.ModelWakeAnswer),
    Operation(
        "post",
        "/sleep",
        "vLLM's: one model, or all that aren't pinned",
        admin.SleepAnswer,
        admin.SleepRequest,
        needs_body=False,
        query=("level", "model", "mode"),
    ),
    Operation("post", "/wake_up", "vLLM's: one model, or all", admin.WakeAnswer, query=("model", "tags")),
    Operation("get", "/is_sleeping", "vLLM's: one model, or any", admin.IsSleepingAnswer, query=("model",)),
    Operation("post", "/-/reload", "Read the registry again and apply it", admin.ReloadAnswer),
)


@cache
def openapi_document() -> dict[str, Any]:
    """The whole document, as OpenAPI 3.1."""
    names, schemas = _schemas()
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _describe(operation, names)
    return {
        "openapi": "3.1.0",
        "info": {"title": "onecard", "version": VERSION},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"bearer": []}],
    }


def _schemas() -> tuple[dict[type[BaseModel], str], dict[str, Any]]:
    wanted: dict[type[BaseModel], Mode] = {responses.ErrorAnswer: "serialization"}
    for operation in OPERATIONS:
        if operation.request is not None:
            wanted[operation.request] = "validation"
        for answer in (operation.answer, operation.chunk):
            if answer is not None:
                wanted[answer] = "serialization"
    refs, definitions = models_json_schema(list(wanted.items()), ref_template=REFS)
    names = {model: refs[(model, mode)]["$ref"] for model, mode in wanted.items()}
    return names, definitions["$defs"]


def _describe(operation: Operation, names: dict[type[BaseModel], str]) -> dict[str, Any]:
    content: dict[str, Any] = {"text/plain": {}} if operation.path == "/metrics" else {"application/json": {}}
    if operation.answer is not None:
        content = {"application/json": {"schema": {"$ref": names[operation.answer]}}}
    if operation.chunk is not None:
        content["text/event-stream"] = {"schema": {"$ref": names[operation.chunk]}}
    error = {"application/json": {"schema": {"$ref": names[responses.ErrorAnswer]}}}
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": operation.method
        + operation.path.translate(str.maketrans("/{}.", "_   ")).replace(" ", ""),
        "responses": {
            "200": {"description": operation.summary, "content": content},
            "default": {"description": "An error", "content": error},
        },
    }
    if operation.request is not None:
        body = {"application/json": {"schema": {"$ref": names[operation.request]}}}
        described["requestBody"] = {"required": operation.needs_body, "content": body}
    if parameters := [
        *(_parameter(name, "path", True) for name in re.findall(r"{(\w+)}", operation.path)),
        *(_parameter(name, "query", False) for name in operation.query),
        *([PRIORITY_PARAMETER] if _has_priority(operation) else []),
    ]:
        described["parameters"] = parameters
    return described


def _has_priority(operation: Operation) -> bool:
    return operation.request is not None and "priority" in operation.request.model_fields


def _parameter(name: str, place: str, required: bool) -> dict[str, Any]:
    return {"name": name, "in": place, "required": required, "schema": {"type": "string"}}
