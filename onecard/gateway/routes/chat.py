"""`POST /v1/chat/completions`."""

from collections.abc import Sequence
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
    """Chunks of `chat.completion.chunk`: a role first, then text, then the finish reason."""

    def __init__(self, identity: Identity, asked: ChatRequest, streams: Sequence[GenerationStream]):
        self._head = sse.frame_head(identity, "chat.completion.chunk")
        self._usage = sse.UsageTail(streams, asked.wants_usage, asked.wants_running_usage)
        self._logprobs = asked.logprobs
        self._starts = [self._head + b'[{"index":%d,"delta":{' % index for index in range(asked.n)]
        self._roles_sent = False

    def render(self, batch: Sequence[tuple[int, TokenChunk]]) -> bytes:
        frames = [] if self._roles_sent else self._roles()
        frames.extend(self._chunk(chunk) for _, chunk in batch)
        return b"".join(frames)

    def end(self) -> bytes:
        return self._usage.last_frame(self._head)

    def _roles(self) -> list[bytes]:
        self._roles_sent = True
        rest = b'"role":"assistant","content":""}' + sse.PLAIN_ENDING
        return [start + rest + self._usage.tail() for start in self._starts]

    def _chunk(self, chunk: TokenChunk) -> bytes:
        logprobs = chat_logprobs(chunk.logprobs) if self._logprobs and chunk.logprobs else None
        if not (chunk.text or logprobs or chunk.finish_reason):
            return b""
        delta = b'"content":' + orjson.dumps(chunk.text) + b"}" if chunk.text or logprobs else b"}"
        return self._starts[chunk.index] + delta + sse.ending(logprobs, chunk) + self._usage.tail()


def _answer(
    identity: Identity, asked: ChatRequest, answers: Sequence[Answer], stream: GenerationStream
) -> dict[str, Any]:
    return {
        **identity.fields("chat.completion"),
        "choices": json_list(_choice(i, answer, asked.logprobs) for i, answer in enumerate(answers)),
        "usage": usage([stream]),
        "prompt_logprobs": prompt_logprobs(stream, asked.prompt_logprobs),
    }


def _choice(index: int, answer: Answer, logprobs: bool) -> dict[str, Any]:
    return {
        "index": index,
        "message": {"role": "assistant", "content": answer.text, "refusal": None},
        "logprobs": chat_logprobs(answer.logprobs) if logprobs else None,
        "finish_reason": answer.finish_reason,
        "stop_reason": answer.stop_reason,
    }
