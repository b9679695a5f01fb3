"""Paths as people write them: slashes too many, no `/v1`, two; and what stays shut all the same."""

import asyncio
import json

import pytest

KEY = {"x-api-key": "first-key"}
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


async def status(port, method, path, headers, body=b""):
    """Of a request whose path no client has tidied, and its JSON."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(body)}"] * bool(body)
    writer.write("\r\n".join([*lines, "", ""]).encode() + body)
    head, _, text = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), json.loads(text)


MEANT = [
    ("/v1/models/", "/v1/models"),
    ("/v1//models", "/v1/models"),
    ("//v1/models", "/v1/models"),
    ("/models", "/v1/models"),
    ("/models/", "/v1/models"),
    ("/v1/v1/models", "/v1/models"),
    ("/models/talker", "/v1/models/talker"),
    ("/models/org/talker-v2", "/v1/models/org/talker-v2"),
    ("/v1/models/talker/", "/v1/models/talker"),
    ("/v1/models//talker", "/v1/models/talker"),
    ("/v1/openapi.json", "/openapi.json"),
    ("/openapi.json/", "/openapi.json"),
    ("/v1/version", "/version"),
    ("/version//", "/version"),
    ("/v1/tokenizer_info", "/tokenizer_info"),
    ("/v1", "/"),
    ("/v1/", "/"),
    ("//", "/"),
]


@pytest.mark.parametrize(("path", "meant"), MEANT)
async def test_what_is_plainly_meant_is_answered(serve, path, meant):
    client = await serve(api_keys=("first-key",))
    found = await status(client.port, "GET", path, KEY)
    assert found == await status(client.port, "GET", meant, KEY)
    assert found[0] == 200


POSTED = [
    ("chat/completions", CHAT),
    ("completions", {"prompt": "Hi"}),
    ("embeddings", {"input": "Hi"}),
    ("rerank", {"query": "Hi", "documents": ["a"]}),
    ("tokenize", {"prompt": "Hi"}),
    ("detokenize", {"tokens": [72]}),
]


@pytest.mark.parametrize("around", ["/{}", "/{}/", "/v1/{}", "/v1//{}", "/v1/{}/", "/v1/v1/{}", "//v1//{}//"])
@pytest.mark.parametrize(("name", "body"), POSTED)
async def test_what_is_posted_there_is_served_not_redirected(client, judge, around, name, body):
    sent = json.dumps(body).encode()
    code, answer = await status(client.port, "POST", around.format(name), {}, sent)
    assert code == 200, answer


async def test_metrics_tell_of_the_path_that_was_meant(client, metrics):
    await client.post("/chat/completions/", CHAT)
    await client.get("/models/talker")
    await client.get("/nothing/here")
    assert [request[0] for request in metrics.requests] == [
        "/v1/chat/completions",
        "/v1/models/{id}",
        "none",
    ]


@pytest.mark.parametrize("path", ["/models", "/v1//models", "/chat/completions", "/v1/tokenize/", "/x/y"])
async def test_other_spellings_want_the_key_too(serve, path):
    client = await serve(api_keys=("first-key",))
    for method in ("GET", "POST"):
        assert (await status(client.port, method, path, {}))[0] == 401


@pytest.mark.parametrize("path", ["/health/", "/v1/health", "//healthz", "/", "/v1", "/version/", "/ping/"])
async def test_probes_need_none_however_they_are_spelt(serve, path):
    client = await serve(api_keys=("first-key",))
    reply = await client.get(path)
    assert reply.status == 200


ORDERS = ["/v1/sleep", "/v1/admin/status", "/v1/models/talker/sleep", "/v1//-/reload", "/v1/is_sleeping/"]


@pytest.mark.parametrize("path", ORDERS)
async def test_no_other_spelling_gives_an_order(serve, path):
    client = await serve(api_keys=("first-key",), admin_key="sesame")
    for key in ("first-key", "sesame"):
        for method in ("GET", "POST"):
            code, _ = await status(client.port, method, path, {"x-api-key": key})
            assert code in (401, 404, 405)


async def test_the_wrong_method_is_told_the_right_one(client):
    for path in ("/v1/chat/completions", "/chat/completions/", "/v1//embeddings"):
        reply = await client.get(path)
        assert (reply.status, reply.headers["Allow"]) == (405, "POST")
    reply = await client.post("/models", {})
    assert (reply.status, reply.headers["Allow"]) == (405, "GET")


async def test_what_means_nothing_is_not_found(client):
    for path in ("/v2/models", "/v1/chat", "/v1/chat/completions/extra", "/api/v1/models"):
        reply = await client.get(path)
        assert (reply.status, reply.error["code"]) == (404, "not_found")
        assert "GET /openapi.json" in reply.error["message"]


async def test_the_address_alone_says_who_is_here(client):
    body = (await client.get("/")).body
    assert body["name"] == "onecard"
    for path in ("models", "description", "health", "metrics"):
        assert (await client.get(body[path], check=False)).status == 200
