"""The streams of one HTTP request, its answers as a whole, what it has used, and the name it goes by."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from onecard.engines.api import (
    EngineError,
    FinishReason,
    GenerateRequest,
    GenerationStream,
    InvalidRequestError,
    TextGenerator,
    TokenChunk,
    TokenLogprob,
)
from onecard.gateway import SYSTEM_FINGERPRINT
from onecard.gateway.admission import Ticket
from onecard.gateway.answers.merger import StreamMerger, size

MOST_KEPT = 1_000_000
"""Tokens and alternatives with log-probabilities of answers that are not streamed: some 150 MiB."""

OPENED_AT_ONCE = 32
"""Prompts of one request: all tasks that are ready run before the event loop looks at anything else."""

BYTES_OF_ENTRY = 80
"""A token's text, or one of its alternatives with its log-probability."""


@asynccontextmanager
async def open_streams(
    engine: TextGenerator, requests: Sequence[GenerateRequest]
) -> AsyncIterator[list[GenerationStream]]:
    """One stream a request, in order. However the block is left, what still runs then is aborted."""
    opened: dict[int, GenerationStream] = {}

    async def open_one(i: int) -> None:
        opened[i] = await engine.generate(requests[i])

    try:
        if len(requests) == 1:
            await open_one(0)
        else:
            await _all_or_first_error(open_one, len(requests))
        yield [opened[i] for i in range(len(requests))]
    finally:
        for stream in opened.values():
            stream.abort()


@dataclass
class Answer:
    """One finished answer. `logprobs` is empty where none were asked for."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def mean_logprob(self) -> float:
        """How likely the answer is, a token; for `best_of`."""
        if not self.logprobs:
            return float("-inf")
        return sum(entry.logprob for entry in self.logprobs) / len(self.logprobs)

    def add(self, chunk: TokenChunk) -> None:
        self.texts.append(chunk.text)
        self.token_ids.extend(chunk.token_ids)
        self.logprobs.extend(chunk.logprobs or ())
        if chunk.finish_reason is not None:
            self.finish_reason, self.stop_reason = chunk.finish_reason, chunk.stop_reason


async def collect(streams: Sequence[GenerationStream], n: int, ticket: Ticket) -> list[list[Answer]]:
    """All answers, `[stream][index]`. Raises `EngineError` if one of them was not finished properly, or if
    their log-probabilities come to more than is kept for one request."""
    answers = [[Answer() for _ in range(n)] for _ in streams]
    kept = 0
    with StreamMerger(streams, n, on_begun=ticket.begun) as merger:
        while batch := await merger.piece():
            for stream, chunk in batch:
                answers[stream][chunk.index].add(chunk)
                kept += size(chunk) if chunk.logprobs else 0
            if kept > MOST_KEPT:
                raise InvalidRequestError(
                    f"The answers' log-probabilities have come to more than {MOST_KEPT} tokens and "
                    "alternatives, which is more than is kept of one request. Please stream the answers, or "
                    "ask for less: `n`, `max_tokens`, alternatives, prompts.",
                    param="logprobs",
                )
    return answers


def usage(streams: Sequence[GenerationStream]) -> dict[str, Any]:
    """OpenAI's `usage` over all prompts of a request, so far."""
    return usage_of(*prompt_tokens(streams), sum(stream.completion_tokens for stream in streams))


def prompt_tokens(streams: Sequence[GenerationStream]) -> tuple[int, int]:
    """Of all prompts, and how many of them came from the prefix cache."""
    return sum(len(stream.prompt_token_ids) for stream in streams), sum(s.cached_tokens for s in streams)


def usage_of(prompt: int, cached: int, completion: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def answer_bytes(
    streams: Sequence[GenerationStream], logprobs: int | None, prompt_logprobs: int | None
) -> int:
    """About how long an answer is as JSON, with so many alternatives for each token and each prompt token."""
    answered = sum(stream.completion_tokens for stream in streams) * (1 + (logprobs or 0))
    asked = sum(len(stream.prompt_token_ids) for stream in streams)
    return (answered + (0 if prompt_logprobs is None else asked * (1 + prompt_logprobs))) * BYTES_OF_ENTRY


async def _all_or_first_error(open_one: Callable[[int], Coroutine[Any, Any, None]], count: int) -> None:
    try:
        for first in range(0, count, OPENED_AT_ONCE):
            async with asyncio.TaskGroup() as group:
                for i in range(first, min(first + OPENED_AT_ONCE, count)):
                    group.create_task(open_one(i))
    except ExceptionGroup as errors:
        raise _first(errors) from None


def _first(errors: ExceptionGroup[Exception]) -> Exception:
    return next(
        (error for error in errors.exceptions if isinstance(error, EngineError)), errors.exceptions[0]
    )


@dataclass(frozen=True)
class Identity:
    """`id` is also the engine's request id, so it is never taken from the client. `created`: Unix seconds."""

    id: str
    created: int
    model: str

    @classmethod
    def new(cls, prefix: str, model: str) -> "Identity":
        return cls(f"{prefix}-{secrets.token_hex(16)}", int(time.time()), model)

    def fields(self, object_name: str) -> dict[str, Any]:
        """The head of an answer."""
        return {
            "id": self.id,
            "object": object_name,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": SYSTEM_FINGERPRINT,
        }
