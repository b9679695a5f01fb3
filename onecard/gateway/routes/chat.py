"""`POST /v1/chat/completions`."""

from collections.abc import Iterator, Sequence
from typing import Any

import orjson
from aiohttp import web

from onecard.engines.api import GenerationStream, TextGenerator, TokenChunk
from onecard.gateway.answers import sse
from onecard.gateway.answers.generation import Answer, Identity, answer_bytes, collect, open_streams, usage
from onecard.gateway.answers.logprobs import chat_logprobs, prompt_logprobs
from onecard.gateway.answers.merger import StreamMerger
from onecard.gateway.context import GATEWAY
from onecard.gateway.http.body import json_list, large_json_response, parse
from onecard.gateway.schemas.chat import ChatRequest

CHUNK = "chat.completion.chunk"


async def chat_completions(request: web.Request) -> web.StreamResponse:
    gateway = request.app[GATEWAY]
    asked = await parse(request, ChatRequest)
    engine: TextGenerator = gateway.router.engine_for("generate", asked.model)
    gateway.admission.check_size(1, "messages", asked.n)
    identity = Identity.new("chatcmpl", engine.info.name)
    wanted = asked.to_engine(identity.id, engine.info)
    with gateway.admission.admit(engine.info.name) as ticket:
        async with open_streams(engine, [wanted]) as streams:
            if not asked.stream:
                [answers] = await collect(streams, asked.n, ticket)
                size = answer_bytes(streams, asked.top_logprobs, asked.prompt_logprobs)
                return await large_json_response(size, lambda: _answer(identity, asked, answers, streams[0]))
            with StreamMerger(streams, asked.n, gateway.keep_alive, ticket.begun) as merger:
                return await sse.send(request, merger, ChatFrames(identity, asked, streams), ticket)


class ChatFrames:
    """Chunks of `chat.completion.chunk`: a role first, then text, then the finish reason alone."""

    def __init__(self, identity: Identity, asked: ChatRequest, streams: Sequence[GenerationStream]):
        self._asked, self._identity, [self._stream] = asked, identity, streams
        self._head = sse.frame_head(identity, CHUNK)
        self._usage = sse.UsageTail(streams, asked.wants_usage, asked.wants_running_usage)
        self._choices = [b'[{"index":%d,"delta":{' % index for index in range(asked.n)]
        self._starts = [self._head + choice for choice in self._choices]
        self._begun = False

    def render(self, batch: Sequence[tuple[int, TokenChunk]]) -> bytes:
        self._usage.begin_batch()
        frames = [] if self._begun else self._first()
        for _, chunk in batch:
            frames.extend(self._frames(chunk))
        return b"".join(frames)

    def is_long(self, _batch: Sequence[tuple[int, TokenChunk]]) -> bool:
        return False

    def end(self) -> bytes:
        return self._usage.last_frame(self._head)

    def _first(self) -> list[bytes]:
        """The roles, with what is told of the prompt, and what is echoed of it."""
        self._begun = True
        head = sse.frame_head(self._identity, CHUNK, _prompt_fields(self._asked, self._stream))
        rest = b'"role":"assistant","content":""}' + sse.PLAIN_ENDING + b"}]" + self._usage.tail()
        frames = [head + choice + rest for choice in self._choices]
        if echoed := self._asked.echoed:
            rest = b'"content":' + orjson.dumps(echoed) + b"}" + sse.PLAIN_ENDING + b"}]" + self._usage.tail()
            frames += [start + rest for start in self._starts]
        return frames

    def _frames(self, chunk: TokenChunk) -> Iterator[bytes]:
        """The text, and in a frame of its own the finish: some clients drop text that stands beside it."""
        start, logprobs, ids = self._starts[chunk.index], None, b""
        if self._asked.logprobs and chunk.logprobs:
            logprobs = chat_logprobs(chunk.logprobs, self._asked.return_tokens_as_token_ids)
        if self._asked.return_token_ids and chunk.token_ids:
            ids = b',"token_ids":' + orjson.dumps(chunk.token_ids)
        sent = len(chunk.token_ids)
        if chunk.text or logprobs or ids:
            delta = b'"content":' + orjson.dumps(chunk.text) + b"}"
            yield start + delta + sse.ending(logprobs) + ids + b"}]" + self._usage.tail(sent)
            sent = 0
        if chunk.finish_reason is not None:
            yield start + b"}" + sse.ending(None, chunk) + b"}]" + self._usage.tail(sent)


def _prompt_fields(asked: ChatRequest, stream: GenerationStream) -> dict[str, Any]:
    """What vLLM's fields ask of the prompt."""
    fields: dict[str, Any] = {}
    if asked.return_token_ids:
        fields["prompt_token_ids"] = list(stream.prompt_token_ids)
    if asked.return_prompt_text:
        fields["prompt_text"] = stream.prompt_text
    return fields


def _answer(
    identity: Identity, asked: ChatRequest, answers: Sequence[Answer], stream: GenerationStream
) -> dict[str, Any]:
    return {
        **identity.fields("chat.completion"),
        "choices": json_list(_choice(i, answer, asked) for i, answer in enumerate(answers)),
        "usage": usage([stream]),
        "prompt_logprobs": prompt_logprobs(stream, asked.prompt_logprobs),
        **_prompt_fields(asked, stream),
    }


def _choice(index: int, answer: Answer, asked: ChatRequest) -> dict[str, Any]:
    as_ids = asked.return_tokens_as_token_ids
    return {
        "index": index,
        "message": {"role": "assistant", "content": asked.echoed + answer.text, "refusal": None},
        "logprobs": chat_logprobs(answer.logprobs, as_ids) if asked.logprobs else None,
        "finish_reason": answer.finish_reason,
        "stop_reason": answer.stop_reason,
        **({"token_ids": answer.token_ids} if asked.return_token_ids else {}),
    }
