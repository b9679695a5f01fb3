"""`/openapi.json`, generated from the table of routes and the pydantic models of requests and answers."""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import orjson
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from onecard.gateway import VERSION
from onecard.gateway.http.body import PRIORITY_HEADER
from onecard.gateway.routes.route import Route, Routes
from onecard.gateway.schemas.responses import ErrorAnswer

Mode = Literal["validation", "serialization"]
References = dict[type[BaseModel], dict[str, str]]
REFS = "#/components/schemas/{model}"
PARAMETERS: dict[str, dict[str, Any]] = {
    PRIORITY_HEADER: {
        "description": "The request's `priority` where the body has none; lower goes first.",
        "schema": {"type": "integer"},
    },
    "level": {"schema": {"type": "integer", "enum": [1, 2]}},
    "mode": {"schema": {"enum": ["wait"]}},
    "tags": {"schema": {"type": "array", "items": {"type": "string"}}},
}
"""What is more than a text."""
ABOUT = (
    "OpenAI's API with vLLM's extra fields. A null means the default; fields that are not described are "
    "ignored. Paths for everybody also answer without `/v1` (or with it), and with slashes too many. The "
    "paths under `operating` want `server.admin_key`; without one they answer the server's own machine."
)
TAGS = {"key": "models", "open": "health", "admin": "operating"}
"""By who may ask."""


@cache
def openapi_document(routes: Routes) -> dict[str, Any]:
    """The whole document, as OpenAPI 3.1."""
    references, schemas = _schemas(routes.rows)
    paths: dict[str, dict[str, Any]] = {}
    for row in routes.rows:
        path = row.published
        paths.setdefault(path, {})[row.method.lower()] = _describe(row, path, references)
    return {
        "openapi": "3.1.0",
        "info": {"title": "onecard", "version": VERSION, "description": ABOUT},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"bearer": []}, {"x-api-key": []}],
    }


@cache
def openapi_json(routes: Routes) -> bytes:
    """The document as it is sent. Some 50 ms when it is first asked for."""
    return orjson.dumps(openapi_document(routes))


def _schemas(rows: Sequence[Route]) -> tuple[References, dict[str, Any]]:
    wanted: dict[type[BaseModel], Mode] = {ErrorAnswer: "serialization"}
    for row in rows:
        if row.request is not None:
            wanted[row.request] = "validation"
        wanted |= {answer: "serialization" for answer in (row.answer, row.chunk) if answer is not None}
    refs, definitions = models_json_schema(list(wanted.items()), ref_template=REFS)
    return {model: refs[(model, mode)] for model, mode in wanted.items()}, definitions["$defs"]


def _describe(row: Route, path: str, references: References) -> dict[str, Any]:
    content: dict[str, Any] = {"text/plain": {}} if path == "/metrics" else {"application/json": {}}
    if row.answer is not None:
        content = {"application/json": {"schema": references[row.answer]}}
    if row.chunk is not None:
        content["text/event-stream"] = {"schema": references[row.chunk]}
    described: dict[str, Any] = {
        "summary": row.summary,
        "tags": [TAGS[row.access]],
        "operationId": row.method.lower() + path.translate(str.maketrans("/{}.", "_   ")).replace(" ", ""),
        "responses": {
            "200": {"description": row.summary, "content": content},
            "default": {
                "description": "An error",
                "content": {"application/json": {"schema": references[ErrorAnswer]}},
            },
        },
    }
    if row.access == "open":
        described["security"] = []
    if row.request is not None:
        body = _body(references[row.request], row.file)
        described["requestBody"] = {"required": row.needs_body, "content": body}
    takes_priority = row.request is not None and "priority" in row.request.model_fields
    if parameters := [
        *(_parameter(name, "path", True) for name in re.findall(r"{(\w+)}", path)),
        *(_parameter(name, "query", False) for name in row.query),
        *(_parameter(name, "header", False) for name in [PRIORITY_HEADER] * takes_priority),
    ]:
        described["parameters"] = parameters
    return described


def _body(fields: dict[str, str], file: str | None) -> dict[str, Any]:
    if file is None:
        return {"application/json": {"schema": fields}}
    beside = {
        "type": "object",
        "properties": {file: {"type": "string", "format": "binary"}},
        "required": [file],
    }
    return {"multipart/form-data": {"schema": {"allOf": [fields, beside]}}}


def _parameter(name: str, place: str, required: bool) -> dict[str, Any]:
    text = {"name": name, "in": place, "required": required, "schema": {"type": "string"}}
    return text | PARAMETERS.get(name, {})
