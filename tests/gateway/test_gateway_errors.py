"""What goes wrong outside of validation: bodies, paths, engines."""

import pytest

from onecard.engines.api import ContextLengthError, EngineFailedError, InvalidRequestError

CHAT = "/v1/chat/completions"
OK = {"messages": [{"role": "user", "content": "Hi"}]}
JSON = {"Content-Type": "application/json"}
POSTS = [CHAT, "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize"]


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "data",
    [b"", b"{", b'{"a": }', b"\xff\xfe\x00", b"nonsense", b'{"a": NaN}', b"[" * 100_000, b'{"a": "\\ud800"}'],
)
async def test_malformed_json(client, path, data):
    reply = await client.request("POST", path, data=data, headers=JSON)
    assert (reply.status, reply.error["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("data", [b"[]", b"null", b'"text"', b"3", b"true"])
async def test_body_must_be_an_object(client, data):
    reply = await client.request("POST", CHAT, data=data, headers=JSON)
    assert reply.status == 400
    assert reply.error["message"] == "The body must be a JSON object."


async def test_ten_megabytes_of_nonsense(client):
    for data in (b"\x00" * 10_000_000, b"[" + b"1," * 5_000_000 + b"x]", b'{"prompt":"' + b"a" * 10_000_000):
        reply = await client.request("POST", "/v1/completions", data=data, headers=JSON)
        assert (reply.status, reply.error["code"]) == (400, "invalid_json")
        assert len(reply.text) < 500
    assert (await client.post(CHAT, OK)).status == 200


async def test_too_large_a_body(serve, node):
    client = await serve(max_body_bytes=1000)
    reply = await client.request("POST", CHAT, data=b" " * 1001, headers=JSON)
    assert (reply.status, reply.error["code"]) == (413, "request_too_large")
    assert "1000 bytes" in reply.error["message"]


async def test_too_large_a_body_of_unknown_length(serve):
    async def pieces():
        for _ in range(20):
            yield b" " * 100

    client = await serve(max_body_bytes=1000)
    reply = await client.request("POST", CHAT, data=pieces(), headers=JSON)
    assert reply.status == 413
    assert reply.error["type"] == "RequestTooLargeError"


async def test_content_type(client):
    form = await client.request("POST", CHAT, data={"a": "b"})
    assert (form.status, form.error["type"]) == (415, "UnsupportedMediaTypeError")
    for kind in ("application/json; charset=utf-8", "application/vnd.api+json"):
        reply = await client.post(CHAT, OK, headers={"Content-Type": kind})
        assert reply.status == 200


async def test_no_such_path(client):
    reply = await client.get("/v1/nothing")
    assert (reply.status, reply.error["type"]) == (404, "NotFoundError")


async def test_wrong_method(client):
    reply = await client.get(CHAT)
    assert (reply.status, reply.headers["Allow"]) == (405, "POST")
    assert reply.error["type"] == "MethodNotAllowedError"


async def test_too_long_a_prompt_keeps_the_words_that_clients_look_for(client, node):
    node.chat.refuses = lambda request: ContextLengthError(512, 600)
    reply = await client.post(CHAT, OK)
    assert reply.status == 400
    assert reply.error["message"].startswith("This model's maximum context length is 512 tokens.")
    assert (reply.error["code"], reply.error["param"]) == ("context_length_exceeded", "messages")


async def test_engine_failure_before_the_answer(client, node):
    node.chat.fails_at[1] = EngineFailedError("CUDA error in /root/onecard/engines/llm/x.py:12\nTraceback")
    reply = await client.post(CHAT, OK)
    assert reply.status == 500
    assert reply.error["message"] == "CUDA error in <path>:12"
    assert node.chat.streams[0].aborted.is_set()


async def test_an_unexpected_exception_says_nothing_of_the_inside(client, node):
    node.chat.refuses = lambda request: KeyError("/secret/path")
    reply = await client.post(CHAT, OK)
    assert reply.status == 500
    assert reply.error["message"] == "Internal server error."


async def test_clients_words_keep_their_paths(client, node):
    node.chat.refuses = lambda request: InvalidRequestError("no such adapter: /a/b/c")
    assert (await client.post(CHAT, OK)).error["message"] == "no such adapter: /a/b/c"


async def test_a_stream_that_ends_early_is_an_error(client, node):
    node.chat.words = []
    assert (await client.post(CHAT, OK)).status == 500


async def test_request_ids(client, metrics):
    reply = await client.post(CHAT, OK, headers={"X-Request-Id": "mine-1"})
    assert reply.headers["X-Request-Id"] == "mine-1"
    made = [(await client.get("/v1/nothing")).headers["X-Request-Id"] for _ in range(2)]
    assert len(set(made)) == 2
    odd = await client.post(CHAT, OK, headers={"X-Request-Id": "x" * 200})
    assert odd.headers["X-Request-Id"] != "x" * 200


async def test_http_metrics_name_routes_not_paths(client, metrics):
    await client.post(CHAT, OK)
    await client.get("/v1/models/talker")
    await client.get("/wp-admin.php")
    assert [request[:3] for request in metrics.requests] == [
        (CHAT, "POST", 200),
        ("/v1/models/{id}", "GET", 200),
        ("none", "GET", 404),
    ]
    assert all(seconds > 0 for *_, seconds in metrics.requests)
