"""What a client sees whose model doesn't wake up in time: a real gate before engines that answer at once."""

import asyncio
import json
from typing import Any

import pytest

from onecard.engines.api import EmbedRequest, EmbedResult, GenerateRequest
from onecard.engines.runtime.gate import Gate, WakeTimeout

CHAT = {"model": "talker", "messages": [{"role": "user", "content": "Hi"}]}
COMPLETION = {"model": "talker", "prompt": ["Hi", "Ho"]}
EMBEDDING = {"model": "embedder", "input": "Hi"}
TOO_LATE = (
    "The model `talker` could not be woken within 0.05 s: "
    "`other` is still busy with requests it has accepted. Try again later."
)


class NoRoom:
    """A `Waker` for whom nobody makes room."""

    async def wake_up(self, gate: Gate) -> None:
        while not gate.is_open:
            await asyncio.sleep(0.001)

    def reason(self, gate: Gate) -> str:
        return "`other` is still busy with requests it has accepted"

    def arrived(self, gate: Gate) -> None: ...


@pytest.fixture
def timeout() -> WakeTimeout:
    return WakeTimeout(0.05)


@pytest.fixture(autouse=True)
def gate(node: Any, monkeypatch: pytest.MonkeyPatch, timeout: WakeTimeout) -> Gate:
    """Closed: both models are asleep, and nobody makes room for them."""

    gate = Gate("talker", NoRoom(), timeout, "waking")
    generate, embed = node.chat.generate, node.embed.embed

    async def told(request: GenerateRequest) -> Any:
        stream = await generate(request)
        stream.notice = gate.notice
        return stream

    async def before_step(step: int) -> None:
        await gate.enter()

    async def embed_later(request: EmbedRequest, on_begun: Any = None) -> EmbedResult:
        await gate.enter()
        return await embed(request, on_begun)

    monkeypatch.setattr(node.chat, "generate", told)
    monkeypatch.setattr(node.chat, "before_step", before_step)
    monkeypatch.setattr(node.embed, "embed", embed_later)
    return gate


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", COMPLETION),
        ("/v1/embeddings", EMBEDDING),
    ],
)
async def test_a_503_that_says_what_was_waited_for(client, gate, metrics, path, body):
    reply = await client.post(path, body)
    assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
    assert reply.error["type"] == "ServiceUnavailableError"
    assert reply.error["message"] == TOO_LATE
    assert gate.num_waiting == 0
    assert metrics.rejections == [(body["model"], "wake_timeout")]


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)])
async def test_a_stream_that_was_told_to_wait_ends_with_the_error(client, metrics, path, body):
    async with client.session.post(client.url + path, json={**body, "stream": True}) as response:
        assert response.status == 200
        comment, rest = (await response.text()).split("\n", 1)
    frame, done = rest.split("\n\n")[:-1]
    assert (comment, done) == (": talker is waking up", "data: [DONE]")
    error = json.loads(frame.removeprefix("data: "))["error"]
    assert (error["type"], error["message"]) == ("ServiceUnavailableError", TOO_LATE)
    assert metrics.rejections == [("talker", "wake_timeout")]


async def test_one_that_wakes_in_time_answers(client, gate, timeout):
    async def asked_for() -> None:
        while not gate.num_waiting:
            await asyncio.sleep(0.001)
        gate.state = "ready"

    timeout.seconds = 10
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/embeddings", EMBEDDING)):
        gate.state = "waking"
        reply, _ = await asyncio.gather(client.post(path, body), asked_for())
        assert reply.status == 200
