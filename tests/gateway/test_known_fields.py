"""Each field that OpenAI or vLLM knows is honoured, refused or harmless: none is ignored that matters."""

import json
from pathlib import Path

import pytest
from openai_contract import CONTRACT

from onecard.gateway.routes.table import ROUTES
from onecard.gateway.schemas.base import HARMLESS, Refusal

VLLM = json.loads((Path(__file__).parent / "known_fields.json").read_text())
OPENAI = {
    "/v1/chat/completions": "CreateChatCompletionRequest",
    "/v1/completions": "CreateCompletionRequest",
    "/v1/embeddings": "CreateEmbeddingRequest",
}
OTHERS = {
    "/v1/chat/completions": ["grammar", "json_schema", "regex", "ebnf"],
    "/v1/completions": ["grammar", "json_schema", "regex", "ebnf"],
}
"""llama.cpp's and SGLang's."""
SCHEMAS = {row.path: row.request for row in ROUTES.rows if row.request is not None and row.path in VLLM}
ASKING = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/embeddings": {"input": "Hi"},
    "/v1/rerank": {"query": "Hi", "documents": ["Ho"]},
    "/tokenize": {"prompt": "Hi", "model": "talker"},
}


def fields(path, mark):
    return [
        name
        for name, field in SCHEMAS[path].model_fields.items()
        if any(isinstance(found, mark) for found in field.metadata)
    ]


REFUSED = [(path, name) for path in ASKING for name in fields(path, Refusal)]
HARMLESS_FIELDS = [(path, name) for path in ASKING for name in fields(path, type(HARMLESS))]


def properties(schema, schemas):
    if "$ref" in schema:
        return properties(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    parts = [part for kind in ("allOf", "anyOf", "oneOf") for part in schema.get(kind, ())]
    return {*schema.get("properties", ()), *(name for part in parts for name in properties(part, schemas))}


@pytest.mark.parametrize("path", SCHEMAS)
def test_each_of_vllms_fields_has_its_place(path):
    known = {*VLLM[path], *OTHERS.get(path, ())}
    assert known - SCHEMAS[path].model_fields.keys() == set()
    assert not set(fields(path, Refusal)) & set(fields(path, type(HARMLESS)))


@pytest.mark.parametrize("path", OPENAI)
def test_each_of_openais_fields_has_its_place(path):
    if not CONTRACT.exists():
        pytest.skip("OpenAI's API description is not beside the repository (../shared/contracts)")
    schemas = json.loads(CONTRACT.read_text())["components"]["schemas"]
    known = properties(schemas[OPENAI[path]], schemas)
    assert len(known) > 4
    assert known - SCHEMAS[path].model_fields.keys() == set()


@pytest.mark.parametrize(("path", "name"), REFUSED)
async def test_what_is_refused_says_so_and_its_inert_values_pass(client, node, judge, path, name):
    reply = await client.post(path, {**ASKING[path], name: {"something": "that matters"}})
    assert (reply.status, reply.error["param"]) == (400, name)
    assert name in reply.error["message"]
    [refusal] = (f for f in SCHEMAS[path].model_fields[name].metadata if isinstance(f, Refusal))
    for value in (None, *refusal.inert):
        reply = await client.post(path, {**ASKING[path], name: value})
        assert reply.status == 200, (name, value, reply.text)


@pytest.mark.parametrize(("path", "name"), HARMLESS_FIELDS)
@pytest.mark.parametrize("value", ["text", None])
async def test_what_is_harmless_changes_nothing_that_is_asked_of_the_model(
    client, node, judge, path, name, value
):
    if path == "/tokenize":
        assert (await client.post(path, {**ASKING[path], name: value})).status == 200
        return
    engine = {"/v1/embeddings": node.embed, "/v1/rerank": judge}.get(path, node.chat)
    for body in (ASKING[path], {**ASKING[path], name: value}):
        assert (await client.post(path, body)).status == 200
    own = {"request_id": None, "group": None}  # each request has its own
    first, second = (vars(request) | own for request in engine.requests)
    assert first == second


MATTERS = {
    "thinking_token_budget": 0,
    "include_reasoning": False,
    "verbosity": "low",
    "watermarking": True,
    "truncation_side": "right",
    "repeat_penalty": 1.1,
    "typical_p": 0.9,
    "use_beam_search": True,
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "web_search_options": {},
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy", "format": "wav"},
    "grammar": "root ::= [ab]",
    "json_schema": {"type": "object"},
    "regex": "a|b",
    "ebnf": "root ::= a",
}


@pytest.mark.parametrize("name", MATTERS)
async def test_values_that_look_like_nothing_but_matter_are_refused(client, node, name):
    path = "/v1/chat/completions"
    reply = await client.post(path, {**ASKING[path], name: MATTERS[name]})
    assert reply.status == 400
    assert reply.error["param"].partition("[")[0] == name
    assert node.chat.requests == []


ASK_NOTHING = {
    "include_reasoning": True,
    "thinking_token_budget": -1,
    "verbosity": "medium",
    "truncation_side": "left",
    "mirostat": 0,
    "typical_p": 1.0,
    "repeat_penalty": 1,
    "function_call": "none",
    "use_beam_search": False,
    "grammar": "",
    "kv_transfer_params": {},
}


@pytest.mark.parametrize("name", ASK_NOTHING)
async def test_values_that_ask_for_what_is_done_anyway_pass(client, name):
    path = "/v1/chat/completions"
    reply = await client.post(path, {**ASKING[path], name: ASK_NOTHING[name]})
    assert reply.status == 200, reply.text


async def test_fields_that_nobody_knows_are_let_pass(client):
    for path, body in ASKING.items():
        if path != "/v1/rerank":
            assert (await client.post(path, {**body, "from_next_year": {"a": 1}})).status == 200
