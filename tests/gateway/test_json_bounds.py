"""JSON that nests deep or has very many parts is refused with a sentence, wherever it is read."""

import json

import orjson
import pytest

from onecard.engines.api import InvalidRequestError
from onecard.gateway.schemas.bounded_json import (
    MAX_CONTAINERS,
    MAX_DEPTH,
    MAX_VALUES,
    PIECE_BYTES,
    check_bounds,
    loads,
)

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "Hi"}
ROUTES = [
    (CHAT, {"messages": [USER]}),
    ("/v1/completions", {"prompt": "Hi"}),
    ("/v1/embeddings", {"input": "Hi"}),
    ("/v1/rerank", {"query": "Hi", "documents": ["a"]}),
    ("/tokenize", {"model": "talker", "prompt": "Hi"}),
    ("/detokenize", {"model": "talker", "tokens": [1]}),
]


def nested(depth, inner=b"1"):
    return b'{"a":' * depth + inner + b"}" * depth


async def post(client, path, data):
    return await client.request("POST", path, data=data, headers={"Content-Type": "application/json"})


@pytest.mark.parametrize(("path", "body"), ROUTES)
@pytest.mark.parametrize("depth", [MAX_DEPTH, 254, 980, 100_000])
async def test_deep_bodies_are_refused_on_every_route(client, judge, path, body, depth):
    data = orjson.dumps(body)[:-1] + b',"unknown":' + nested(depth) + b"}"
    reply = await post(client, path, data)
    assert (reply.status, reply.error["code"]) == (400, "invalid_json")
    assert f"at most {MAX_DEPTH} lists" in reply.error["message"]


@pytest.mark.parametrize("field", ["tools", "documents", "chat_template_kwargs", "response_format"])
@pytest.mark.parametrize("depth", [240, 980])
async def test_deep_tools_and_the_like_are_refused(client, node, field, depth):
    value = (
        nested(depth) if field in ("chat_template_kwargs", "response_format") else b"[" + nested(depth) + b"]"
    )
    data = orjson.dumps({"messages": [USER]})[:-1] + b',"%s":' % field.encode() + value + b"}"
    reply = await post(client, CHAT, data)
    assert (reply.status, node.chat.requests) == (400, [])


@pytest.mark.parametrize("arguments", ["[" * 2000, "[" * 2000 + "]" * 2000, '{"a":' * 150 + "1" + "}" * 150])
@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
async def test_deep_arguments_of_a_tool_call_are_refused(client, node, path, arguments):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    said = [USER, {"role": "assistant", "tool_calls": [call]}]
    reply = await client.post(path, {"model": "talker", "messages": said})
    assert (reply.status, reply.error["param"]) == (400, "messages")
    assert node.chat.requests == []


async def test_as_deep_as_allowed_reaches_the_template(client, node):
    depth = MAX_DEPTH - 6
    tool = {"type": "function", "function": {"name": "f", "parameters": json.loads(nested(depth))}}
    call = {"function": {"name": "f", "arguments": nested(MAX_DEPTH).decode()}}
    said = [USER, {"role": "assistant", "tool_calls": [call]}, USER]
    assert (await client.post(CHAT, {"messages": said, "tools": [tool]})).status == 200


async def test_a_byte_order_mark_is_no_mistake(client):
    data = b"\xef\xbb\xbf" + orjson.dumps({"messages": [USER]})
    assert (await post(client, CHAT, data)).status == 200


async def test_another_encoding_than_utf8_is_said(client):
    reply = await post(client, CHAT, json.dumps({"messages": [USER]}).encode("utf-16"))
    assert (reply.status, reply.error["code"]) == (400, "invalid_json")
    assert "UTF-8" in reply.error["message"]


BRACKETS = "[{" * 200
STRINGS = [BRACKETS, '\\"' + BRACKETS, "\\\\", "\\" * 3 + '"' + BRACKETS, '"\\' * 7 + BRACKETS]


@pytest.mark.parametrize("text", STRINGS)
@pytest.mark.parametrize("before", [0, 1, 2, 3, 8, 9, 10, 11])
def test_brackets_in_strings_do_not_count_wherever_the_text_is_cut(text, before):
    data = orjson.dumps(["x" * (PIECE_BYTES - before), text, {text: [1]}, ":,[" * MAX_CONTAINERS])
    assert loads(data) == orjson.loads(data)


@pytest.mark.parametrize(
    "data",
    [
        b"[" + b"[]," * MAX_CONTAINERS + b"1]",
        b"{" + b'"a":1,' * (MAX_CONTAINERS + 1) + b'"a":1}',
        b"[" + b"1," * (MAX_VALUES + 1) + b"1]",
        b'["' + b"x" * PIECE_BYTES + b'",' + b"[" * (MAX_DEPTH + 1),
    ],
)
def test_too_much_is_refused_before_it_is_read(data):
    with pytest.raises(InvalidRequestError, match="at most"):
        check_bounds([data])


def test_what_a_long_context_needs_is_taken():
    ids = list(range(1_000_000))
    assert loads(orjson.dumps({"prompt": ids}))["prompt"] == ids
