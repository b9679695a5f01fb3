import asyncio
import json
import re
from urllib.parse import urlsplit

import pytest

from onecard.engines.api import EngineFailedError, InvalidRequestError, TokenChunk
from onecard.engines.paged.stream import TokenStream
from onecard.gateway.answers.merger import MOST_UNREAD, merge
from onecard.gateway.answers.sse import UsageTail

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
OK = {"messages": [{"role": "user", "content": "Hi"}]}
TEXT = 'Hello wörld"!\n'


def contents(chunks, index=0):
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content", "") for choice in choices)


async def test_chat_stream(client):
    chunks = await client.events(CHAT, OK)
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert contents(chunks) == TEXT
    finishes = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert finishes[-1] == "stop"
    assert set(finishes[:-1]) == {None}
    assert "stop_reason" in chunks[-1]["choices"][0]
    assert all("usage" not in chunk for chunk in chunks)


async def test_one_frame_a_step_when_the_client_keeps_up(client, node):
    gates = [node.chat.hold(step) for step in (1, 2)]
    body = {**OK, "stream": True}
    async with client.session.post(client.url + CHAT, json=body) as response:
        first = await response.content.readuntil(b"\n\n") + await response.content.readuntil(b"\n\n")
        assert b'"content":"Hello"' in first
        gates[0].set()
        assert b'"content":" w\xc3\xb6rld"' in await response.content.readuntil(b"\n\n")
        gates[1].set()
        rest = await response.content.read()
        assert rest.endswith(b"data: [DONE]\n\n")


async def test_n_streams_interleaved(client):
    chunks = await client.events(CHAT, {**OK, "n": 3})
    roles = [c["choices"][0]["index"] for c in chunks if "role" in c["choices"][0]["delta"]]
    assert roles == [0, 1, 2]
    assert [contents(chunks, index) for index in range(3)] == [TEXT] * 3


async def test_usage_at_the_end(client):
    chunks = await client.events(CHAT, {**OK, "stream_options": {"include_usage": True}})
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {
        "prompt_tokens": 9,
        "completion_tokens": 3,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 3},
    }


async def test_running_usage(client, node):
    gate = node.chat.hold(1)
    asyncio.get_running_loop().call_later(0.05, gate.set)
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = await client.events(CHAT, {**OK, "stream_options": options})
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert (counts[0], counts[1], counts[-1]) == (0, 1, 3)


async def test_running_usage_counts_what_has_gone_out_not_what_has_come(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    for path, asked in ((CHAT, OK), (COMPLETIONS, {"prompt": "Hi"})):
        chunks = await client.events(path, {**asked, "n": 2, "stream_options": options})
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        assert counts == sorted(counts)
        assert counts[-1] == 6
        assert counts[0] == (0 if path == CHAT else 3)


class CountedPrompt:
    """A stream of whose prompt somebody asks."""

    completion_tokens, cached_tokens, times = 0, 2, 0

    @property
    def prompt_token_ids(self):
        self.times += 1
        return (1, 2, 3)


def test_prompts_are_summed_once_a_batch_however_many_frames_it_has():
    streams = [CountedPrompt() for _ in range(50)]
    tail = UsageTail(streams, at_end=True, running=True)
    for _ in range(2):
        tail.begin_batch()
        frames = [json.loads(b'{"a":1' + tail.tail(1)) for _ in range(200)]
    assert frames[-1]["usage"] == {
        "prompt_tokens": 150,
        "completion_tokens": 400,
        "total_tokens": 550,
        "prompt_tokens_details": {"cached_tokens": 100},
    }
    assert {stream.times for stream in streams} == {2}


@pytest.mark.parametrize("options", [{}, {"logprobs": True, "top_logprobs": 1}, {"n": 2}])
async def test_the_finish_reason_stands_in_a_chunk_of_its_own(client, options):
    chunks = await client.events(CHAT, {**OK, **options})
    finals = [choice for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    assert len(finals) == options.get("n", 1)
    assert all((final["delta"], final["logprobs"]) == ({}, None) for final in finals)
    assert contents(chunks, options.get("n", 1) - 1) == TEXT


async def test_a_comment_ends_no_event(serve, node):
    """Older clients take an empty line for the end of an event, and one without data for the stream's end."""
    client = await serve(keep_alive=0.02)
    gate = node.chat.hold(0)
    asyncio.get_running_loop().call_later(0.1, gate.set)
    async with client.session.post(client.url + CHAT, json={**OK, "stream": True}) as response:
        text = (await response.content.read()).decode()
    events = text.removesuffix("\n\n").split("\n\n")
    assert text.count(": keep-alive\n") > 1
    assert all(event.splitlines()[-1].startswith("data: ") for event in events)


async def test_logprobs_stream(client):
    chunks = await client.events(CHAT, {**OK, "logprobs": True, "top_logprobs": 1})
    entries = [e for c in chunks for e in (c["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert [entry["token"] for entry in entries] == ["Hello", " wörld", '"!\n']


async def test_held_back_text_sends_no_frame(client, node):
    node.chat.words = ["a", "", "b"]

    async def slowly(step):
        await asyncio.sleep(0.02)

    node.chat.before_step = slowly
    chunks = await client.events(CHAT, OK)
    assert contents(chunks) == "ab"
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == ["", "a", "b", None]


async def test_completion_stream_with_prompts_and_n(client):
    body = {"prompt": ["a", "b"], "n": 2, "echo": True, "stream_options": {"include_usage": True}}
    chunks = await client.events(COMPLETIONS, body, check=False)
    texts = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    assert texts == {0: "a" + TEXT, 1: "a" + TEXT, 2: "b" + TEXT, 3: "b" + TEXT}
    assert chunks[-1]["usage"]["completion_tokens"] == 12


async def test_completion_stream_offsets_go_on(client):
    body = {"prompt": [72, 105], "logprobs": 0, "echo": True}
    chunks = await client.events(COMPLETIONS, body, check=False)
    logprobs = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert [offset for entry in logprobs for offset in entry["text_offset"]] == [0, 1, 2, 7, 13]
    assert [token for entry in logprobs for token in entry["tokens"]] == ["H", "i", "Hello", " wörld", '"!\n']


async def test_quiet_streams_are_kept_alive(serve, node):
    client = await serve(keep_alive=0.02)
    gate = node.chat.hold(1)
    async with client.session.post(client.url + CHAT, json={**OK, "stream": True}) as response:
        seen = b""
        while seen.count(b": keep-alive\n") < 2:
            seen += await response.content.readany()
        gate.set()
        seen += await response.content.read()
    assert seen.endswith(b"data: [DONE]\n\n")


async def test_a_notice_goes_out_while_nothing_has_come(client, node):
    gate, generate = node.chat.hold(0), node.chat.generate

    async def asleep(request):
        stream = await generate(request)
        stream.notice = "the model\nis waking up"
        return stream

    node.chat.generate = asleep
    async with client.session.post(client.url + CHAT, json={**OK, "stream": True}) as response:
        assert await response.content.readline() == b": the model is waking up\n"
        node.chat.streams[0].notice = "nearly there"
        assert await response.content.readline() == b": nearly there\n"
        gate.set()
        rest = (await response.content.read()).decode()
    frames = [json.loads(frame.removeprefix("data: ")) for frame in rest.split("\n\n")[:-2]]
    assert contents(frames) == TEXT
    assert rest.endswith("data: [DONE]\n\n")


async def test_a_notice_does_not_disturb_an_answer_in_one_piece(client, node):
    gate, generate = node.chat.hold(0), node.chat.generate

    async def asleep(request):
        stream = await generate(request)
        asyncio.get_running_loop().call_later(0.01, setattr, stream, "notice", "waking up")
        asyncio.get_running_loop().call_later(0.03, gate.set)
        return stream

    node.chat.generate = asleep
    reply = await client.post(CHAT, OK)
    assert reply.body["choices"][0]["message"]["content"] == TEXT


async def test_the_head_and_the_first_frame_come_in_one_piece(client):
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    body = json.dumps({**OK, "stream": True}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    writer.write(head.encode() + b"\r\n\r\n" + body)
    first = await reader.read(1 << 16)
    writer.close()
    assert first.startswith(b"HTTP/1.1 200")
    assert b'"role":"assistant"' in first


async def test_errors_before_the_first_token_have_their_status(client, node):
    node.chat.refuses = lambda request: InvalidRequestError("no")
    reply = await client.post(CHAT, {**OK, "stream": True})
    assert (reply.status, reply.error["message"]) == (400, "no")
    node.chat.refuses = lambda request: None
    node.chat.fails_at[0] = EngineFailedError("the step failed")
    reply = await client.post(CHAT, {**OK, "stream": True})
    assert (reply.status, reply.error["message"]) == (500, "the step failed")


@pytest.mark.parametrize(
    ("error", "message"),
    [(EngineFailedError("the step failed"), "the step failed"), (KeyError("x"), "Internal server error.")],
)
async def test_errors_after_the_headers_are_frames(client, node, error, message):
    node.chat.fails_at[2] = error
    gate = node.chat.hold(2)
    asyncio.get_running_loop().call_later(0.05, gate.set)
    chunks = await client.events(CHAT, OK)
    assert contents(chunks[:-1]) == "Hello wörld"
    assert chunks[-1]["error"]["message"] == message
    assert node.chat.streams[0].aborted.is_set()


async def test_a_stream_that_ends_early_says_so(client, node):
    class Short(TokenStream):
        """Ends after what was pushed, finished or not."""

        def take(self):
            return super().take() or None

    async def generate(request):
        stream = Short([1], None, 1)
        stream.push(TokenChunk(0, "a", (1,)))
        return stream

    node.chat.generate = generate
    async with client.session.post(client.url + CHAT, json={**OK, "stream": True}) as response:
        text = await response.text()
    frames = [json.loads(f.removeprefix("data: ")) for f in text.split("\n\n") if f and "[DONE]" not in f]
    assert contents(frames[:-1]) == "a"
    assert "before all answers were finished" in frames[-1]["error"]["message"]
    assert "before all answers were finished" in (await client.post(CHAT, OK)).error["message"]


async def test_an_abort_by_the_server_is_an_error(client, node):
    original = node.chat.generate

    async def generate(request):
        stream = await original(request)
        stream.chunk = lambda index, word, reason, last: TokenChunk(index, word, finish_reason="abort")
        return stream

    node.chat.generate = generate
    assert (await client.post(CHAT, OK)).status == 503
    assert (await client.post(CHAT, {**OK, "stream": True})).status == 503


def test_merge_joins_an_answers_chunks_in_order():
    batch = [
        (0, TokenChunk(0, "a", (1,))),
        (0, TokenChunk(1, "x", (9,))),
        (1, TokenChunk(0, "q", (5,))),
        (0, TokenChunk(0, "b", (2,), finish_reason="stop", stop_reason="b")),
    ]
    assert merge(batch) == [
        (0, TokenChunk(0, "ab", (1, 2), finish_reason="stop", stop_reason="b")),
        (0, TokenChunk(1, "x", (9,))),
        (1, TokenChunk(0, "q", (5,))),
    ]


class Unread:
    """A client that asks for a stream and reads when it is told to."""

    def __init__(self, reader, writer):
        self.reader, self._writer = reader, writer

    @classmethod
    async def ask(cls, client, path, body):
        address = urlsplit(client.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=1 << 16)
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
        return cls(reader, writer)

    def close(self):
        self._writer.close()


async def test_a_stream_that_nobody_reads_pauses_and_goes_on_whole_once_it_is_read(client, node):
    told, stream = [], TokenStream([1], None, 1)
    stream.on_pause(told.append)

    async def generate(request):
        return stream

    node.chat.generate = generate
    unread = await Unread.ask(client, "/v1/completions", {"prompt": "a", "stream": True})
    pushed = 0
    async with asyncio.timeout(30):
        while told != [True]:
            stream.push(TokenChunk(0, f"<{pushed}>" + "x" * 10_000, (1,)))
            pushed += 1
            await asyncio.sleep(0)
    assert pushed < MOST_UNREAD + 4000, "what the network itself holds, and what may wait"
    reading = asyncio.create_task(unread.reader.read())
    async with asyncio.timeout(30):
        while told != [True, False]:
            await asyncio.sleep(0.001)
        stream.push(TokenChunk(0, "end", (1,), finish_reason="stop"))
        text = (await reading).decode()
    assert [int(number) for number in re.findall(r"<(\d+)>", text)] == list(range(pushed))
    assert text.count("data: [DONE]") == 1
    unread.close()


async def test_a_stream_that_paused_ends_with_its_client(client, node):
    ended, stream = asyncio.Event(), TokenStream([1], None, 1)
    stream.on_abort(ended.set)

    async def generate(request):
        return stream

    node.chat.generate = generate
    told = []
    stream.on_pause(told.append)
    unread = await Unread.ask(client, "/v1/completions", {"prompt": "a", "stream": True})
    async with asyncio.timeout(30):
        while not told:
            stream.push(TokenChunk(0, "x" * 10_000, (1,)))
            await asyncio.sleep(0)
        unread.close()
        await ended.wait()
