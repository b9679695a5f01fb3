"""`POST /v1/completions`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

from onecard.engines.api import GenerationStream, TextGenerator, TokenChunk, TokenLogprob
from onecard.gateway.answers import sse
from onecard.gateway.answers.generation import Answer, Identity, answer_bytes, collect, open_streams, usage
from onecard.gateway.answers.logprobs import CompletionLogprobs, id_name, prompt_logprobs
from onecard.gateway.answers.merger import StreamMerger
from onecard.gateway.context import GATEWAY
from onecard.gateway.http.body import json_list, large_json_response, parse
from onecard.gateway.schemas.completions import CompletionRequest


async def completions(request: web.Request) -> web.StreamResponse:
    gateway = request.app[GATEWAY]
    asked = await parse(request, CompletionRequest)
    engine: TextGenerator = gateway.router.engine_for("generate", asked.model)
    gateway.admission.check_size(len(asked.prompt), "prompt", asked.draws)
    identity = Identity.new("cmpl", engine.info.name)
    wanted = asked.to_engine(identity.id, engine.info)
    with gateway.admission.admit(engine.info.name, len(wanted)) as ticket:
        async with open_streams(engine, wanted) as streams:
            if not asked.stream:
                answers = await collect(streams, asked.draws, ticket)
                echoes = await _echoes(engine, asked, streams)
                size = answer_bytes(streams, asked.logprobs, wanted[0].sampling.prompt_logprobs)
                return await large_json_response(
                    size, lambda: _answer(identity, asked, answers, streams, echoes)
                )
            with StreamMerger(streams, asked.n, gateway.keep_alive, ticket.begun) as merger:
                # Prompts' log-probabilities are there with the first chunk, their texts already now.
                echoes = await _echoes(engine, asked, streams)
                frames = CompletionFrames(identity, asked, streams, echoes)
                return await sse.send(request, merger, frames, ticket)


@dataclass(frozen=True)
class Echo:
    """A prompt as it is sent back: its text and (for log-probabilities) its first token."""

    text: str = ""
    first_token: str = ""


LONG_PROMPT = 256
"""Tokens whose log-probabilities are some milliseconds of JSON."""


class CompletionFrames:
    """Chunks of `text_completion`: the echoed prompt first where asked, then text, then the finish reason."""

    def __init__(
        self,
        identity: Identity,
        asked: CompletionRequest,
        streams: Sequence[GenerationStream],
        echoes: Sequence[Echo],
    ):
        self._asked, self._streams, self._echoes = asked, streams, echoes
        self._head = sse.frame_head(identity, "text_completion")
        self._usage = sse.UsageTail(streams, asked.wants_usage, asked.wants_running_usage)
        count = len(streams) * asked.n
        self._starts = [self._head + b'[{"index":%d,"text":' % index for index in range(count)]
        self._logprobs = [CompletionLogprobs(asked.return_tokens_as_token_ids) for _ in range(count)]
        self._begun = [False] * count

    def render(self, batch: Sequence[tuple[int, TokenChunk]]) -> bytes:
        self._usage.begin_batch()
        return b"".join([self._chunk(stream, chunk) for stream, chunk in batch])

    def is_long(self, batch: Sequence[tuple[int, TokenChunk]]) -> bool:
        """An echoed prompt comes with the log-probabilities of all its tokens."""
        if not self._asked.echo or self._asked.logprobs is None:
            return False
        begin = {stream for stream, chunk in batch if not self._begun[stream * self._asked.n + chunk.index]}
        return sum(len(self._streams[stream].prompt_token_ids) for stream in begin) > LONG_PROMPT

    def end(self) -> bytes:
        return self._usage.last_frame(self._head)

    def _chunk(self, stream: int, chunk: TokenChunk) -> bytes:
        choice = stream * self._asked.n + chunk.index
        text, logprobs, first = chunk.text, self._logprobs[choice], not self._begun[choice]
        self._begun[choice] = True
        if first and self._asked.echo:
            text = self._echoes[stream].text + text
            if self._asked.logprobs is not None:
                _add_prompt(logprobs, self._streams[stream], self._echoes[stream])
        if self._asked.logprobs is not None:
            logprobs.add(chunk.logprobs or ())
        shown = logprobs.take() if logprobs.tokens else None
        ids = self._ids(stream, chunk, first) if self._asked.return_token_ids else b""
        tail = self._usage.tail(len(chunk.token_ids))
        if not (text or shown or ids or chunk.finish_reason):
            return b""
        return self._starts[choice] + orjson.dumps(text) + sse.ending(shown, chunk) + ids + b"}]" + tail

    def _ids(self, stream: int, chunk: TokenChunk, first: bool) -> bytes:
        prompt = self._streams[stream].prompt_token_ids
        asked = b',"prompt_token_ids":' + orjson.dumps(list(prompt)) if first else b""
        return asked + b',"token_ids":' + orjson.dumps(chunk.token_ids)


async def _echoes(
    engine: TextGenerator, asked: CompletionRequest, streams: Sequence[GenerationStream]
) -> Sequence[Echo]:
    if not asked.echo:
        return [Echo()] * len(streams)
    return [await _echo(engine, asked, prompt, stream) for prompt, stream in zip(asked.prompt, streams)]


async def _echo(
    engine: TextGenerator, asked: CompletionRequest, prompt: str | tuple[int, ...], stream: GenerationStream
) -> Echo:
    if isinstance(prompt, str) and asked.truncate_prompt_tokens is None:
        text = prompt
    else:
        text = await engine.detokenize(stream.prompt_token_ids)
    if asked.logprobs is None:
        return Echo(text)
    if asked.return_tokens_as_token_ids:
        return Echo(text, id_name(stream.prompt_token_ids[0]))
    # Not `token_strings`: those are spelt as in the vocabulary, with marks for spaces.
    return Echo(text, await engine.detokenize(stream.prompt_token_ids[:1]))


def _answer(
    identity: Identity,
    asked: CompletionRequest,
    answers: Sequence[Sequence[Answer]],
    streams: Sequence[GenerationStream],
    echoes: Sequence[Echo],
) -> dict[str, Any]:
    choices = (
        _choice(i * asked.n + k, asked, answer, streams[i], echoes[i])
        for i, drawn in enumerate(answers)
        for k, answer in enumerate(_best(drawn, asked.n))
    )
    return {**identity.fields("text_completion"), "choices": json_list(choices), "usage": usage(streams)}


def _best(answers: Sequence[Answer], n: int) -> Sequence[Answer]:
    return answers if len(answers) == n else sorted(answers, key=lambda a: -a.mean_logprob)[:n]


def _choice(
    index: int, asked: CompletionRequest, answer: Answer, stream: GenerationStream, echo: Echo
) -> dict[str, Any]:
    return {
        "index": index,
        "text": echo.text + answer.text,
        "logprobs": _logprobs(asked, answer.logprobs, stream, echo),
        "finish_reason": answer.finish_reason,
        "stop_reason": answer.stop_reason,
        "prompt_logprobs": prompt_logprobs(stream, asked.prompt_logprobs),
        **_ids(asked, answer, stream),
    }


def _ids(asked: CompletionRequest, answer: Answer, stream: GenerationStream) -> dict[str, list[int]]:
    if not asked.return_token_ids:
        return {}
    return {"prompt_token_ids": list(stream.prompt_token_ids), "token_ids": answer.token_ids}


def _logprobs(
    asked: CompletionRequest, entries: Sequence[TokenLogprob], stream: GenerationStream, echo: Echo
) -> dict[str, Any] | None:
    if asked.logprobs is None:
        return None
    logprobs = CompletionLogprobs(asked.return_tokens_as_token_ids)
    if asked.echo:
        _add_prompt(logprobs, stream, echo)
    logprobs.add(entries)
    return logprobs.take()


def _add_prompt(logprobs: CompletionLogprobs, stream: GenerationStream, echo: Echo) -> None:
    # A prompt of one token may have no entries at all.
    logprobs.add_prompt(stream.prompt_logprobs or (None,), echo.first_token, echo.text)
