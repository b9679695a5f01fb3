"""Who goes first: in the body, or for all requests of a client as a header."""

import pytest

CHAT = ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]})
COMPLETION = ("/v1/completions", {"prompt": ["a", "b"]})
EMBEDDING = ("/v1/embeddings", {"input": "a"})
RERANKING = ("/v1/rerank", {"query": "a", "documents": ["b"]})


def asked(node):
    asked = (*node.chat.requests, *node.embed.requests, *node.rerank.requests)
    return [request.priority for request in asked]


@pytest.mark.parametrize(("path", "body"), [CHAT, COMPLETION, EMBEDDING, RERANKING])
@pytest.mark.parametrize(
    ("header", "field", "expected"),
    [
        (None, None, 0),
        ("-3", None, -3),
        (" +7 ", None, 7),
        ("5", {"priority": None}, 5),
        ("5", {"priority": 0}, 0),
        ("5", {"priority": -1}, -1),
    ],
)
async def test_the_body_wins_over_the_header(client, node, judge, path, body, header, field, expected):
    headers = {} if header is None else {"X-Priority": header}
    reply = await client.post(path, {**body, **(field or {})}, headers=headers)
    assert reply.status == 200
    assert set(asked(node)) == {expected}


async def test_streams_have_their_priority_too(client, node):
    path, body = CHAT
    async with client.session.post(
        client.url + path, json={**body, "stream": True}, headers={"X-Priority": "-9"}
    ) as response:
        await response.read()
    assert asked(node) == [-9]


@pytest.mark.parametrize(("path", "body"), [CHAT, COMPLETION, EMBEDDING, RERANKING])
@pytest.mark.parametrize("header", ["", "high", "1.5", "1e3", "0x1", "١", "9" * 4000])
async def test_a_header_that_is_no_integer_is_refused(client, node, judge, path, body, header):
    reply = await client.post(path, body, headers={"X-Priority": header})
    assert (reply.status, reply.error["param"]) == (400, "priority")
    assert "X-Priority" in reply.error["message"]
    assert len(reply.error["message"]) < 400
    assert asked(node) == []


@pytest.mark.parametrize(("path", "body"), [CHAT, COMPLETION, EMBEDDING, RERANKING])
async def test_a_malformed_header_is_refused_even_where_the_body_would_win(client, node, judge, path, body):
    reply = await client.post(path, {**body, "priority": 2}, headers={"X-Priority": "nonsense"})
    assert (reply.status, reply.error["param"]) == (400, "priority")
    assert asked(node) == []


async def test_a_header_out_of_range_is_refused(client, node):
    reply = await client.post(*CHAT, headers={"X-Priority": "9999999999"})
    assert (reply.status, reply.error["param"]) == (400, "priority")
    assert asked(node) == []
