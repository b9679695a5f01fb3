"""How many bytes went in and out is reported for plain answers, streams and refusals."""

import json

CHAT = "/v1/chat/completions"
BODY = {"model": "talker", "messages": [{"role": "user", "content": "Hi"}]}


async def test_a_plain_answer_and_a_refusal(client, metrics):
    reply = await client.post(CHAT, BODY)
    refusal = await client.post(CHAT, BODY | {"model": "nobody"})
    asked = len(json.dumps(BODY))
    assert metrics.sizes[0] == (asked, len(reply.text.encode()))
    assert metrics.sizes[1] == (asked, len(refusal.text.encode()))


async def test_a_stream(client, metrics):
    reply = await client.post(CHAT, BODY | {"stream": True})
    (_, sent) = metrics.sizes[0]
    assert sent >= len(reply.text.encode()) > 100
