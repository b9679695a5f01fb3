"""`/openapi.json`, generated from the pydantic models of requests and answers."""

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from onecard.gateway.schemas import responses
from onecard.gateway.schemas.chat import ChatRequest
from onecard.gateway.schemas.completions import CompletionRequest
from onecard.gateway.schemas.embeddings import EmbeddingRequest
from onecard.gateway.schemas.tokenize import DetokenizeRequest, TokenizeRequest
from onecard.gateway.version import VERSION

Mode = Literal["validation", "serialization"]
REFS = "#/components/schemas/{model}"


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
        described["requestBody"] = {"required": True, "content": body}
    if "{id}" in operation.path:
        described["parameters"] = [
            {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    return described
