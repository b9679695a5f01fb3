"""The streams of one HTTP request: opened together, read as a whole or in batches, aborted together."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from onecard.engines.api import (
    EngineError,
    EngineFailedError,
    FinishReason,
    GenerateRequest,
    GenerationStream,
    ShuttingDownError,
    TextGenerator,
    TokenChunk,
    TokenLogprob,
)
from onecard.gateway.admission import Ticket


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
        self.logprobs.extend(chunk.logprobs or ())
        if chunk.finish_reason is not None:
            self.finish_reason, self.stop_reason = chunk.finish_reason, chunk.stop_reason


async def collect(streams: Sequence[GenerationStream], n: int, ticket: Ticket) -> list[list[Answer]]:
    """All answers, `[stream][index]`. Raises `EngineError` if one of them was not finished properly."""
    # Streams buffer what they deliver, so reading them one after another costs no time.
    return [await _collect_one(stream, n, ticket) for stream in streams]


class ChunkFeed:
    """Merges streams and hands out, in one batch, all chunks that have come since the last batch.

    A slow client thus gets few large writes instead of many small ones. Each chunk comes with the number of
    its stream. Close it (`async with`) to stop the reading tasks.
    """

    def __init__(self, streams: Sequence[GenerationStream], n: int):
        self._ready: list[tuple[int, TokenChunk]] = []
        self._unfinished = len(streams) * n
        self._running = len(streams)
        self._error: Exception | None = None
        self._wake = asyncio.Event()
        self._tasks = [asyncio.create_task(self._pump(i, stream)) for i, stream in enumerate(streams)]

    async def __aenter__(self) -> "ChunkFeed":
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()

    async def batch(self, timeout: float) -> list[tuple[int, TokenChunk]] | None:
        """What is ready, merged by answer; empty at the end; None when nothing came for `timeout` seconds.

        Raises what the stream raised, after everything before it was handed out.
        """
        while not self._ready:
            if self._error is not None:
                raise self._error
            if not self._running:
                self._check_all_finished()
                return []
            self._wake.clear()
            try:
                async with asyncio.timeout(timeout):
                    await self._wake.wait()
            except TimeoutError:
                return None
        batch, self._ready = self._ready, []
        return merge(batch) if len(batch) > 1 else batch

    async def _pump(self, i: int, stream: GenerationStream) -> None:
        try:
            async for chunk in stream:
                if chunk.finish_reason is not None:
                    check_finish(chunk.finish_reason)
                    self._unfinished -= 1
                self._ready.append((i, chunk))
                self._wake.set()
        except Exception as error:  # handed to whoever reads the batches
            self._error = error
        finally:
            self._running -= 1
            self._wake.set()

    def _check_all_finished(self) -> None:
        if self._unfinished:
            raise EngineFailedError("The model ended the stream before all answers were finished.")


def merge(batch: Sequence[tuple[int, TokenChunk]]) -> list[tuple[int, TokenChunk]]:
    """The same text in as few chunks as possible: one an answer, in the order of first appearance."""
    merged: dict[tuple[int, int], list[TokenChunk]] = {}
    for stream, chunk in batch:
        merged.setdefault((stream, chunk.index), []).append(chunk)
    return [(stream, _join(chunks)) for (stream, _), chunks in merged.items()]


def check_finish(reason: FinishReason) -> None:
    """Raises where an answer was cut off by the server rather than finished."""
    if reason == "abort":
        raise ShuttingDownError("The request was stopped by the server.")
    if reason == "error":
        raise EngineFailedError("The model failed while it was answering.")


def _join(chunks: list[TokenChunk]) -> TokenChunk:
    if len(chunks) == 1:
        return chunks[0]
    last = chunks[-1]
    entries = tuple(entry for chunk in chunks for entry in chunk.logprobs or ())
    return TokenChunk(
        index=last.index,
        text="".join(chunk.text for chunk in chunks),
        token_ids=tuple(token for chunk in chunks for token in chunk.token_ids),
        logprobs=entries or None,
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
    )


async def _collect_one(stream: GenerationStream, n: int, ticket: Ticket) -> list[Answer]:
    answers = [Answer() for _ in range(n)]
    async for chunk in stream:
        ticket.begun()
        answers[chunk.index].add(chunk)
    for answer in answers:
        if answer.finish_reason is None:
            raise EngineFailedError("The model ended the stream before all answers were finished.")
        check_finish(answer.finish_reason)
    return answers


async def _all_or_first_error(open_one: Callable[[int], Coroutine[Any, Any, None]], count: int) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            for i in range(count):
                group.create_task(open_one(i))
    except ExceptionGroup as errors:
        raise _first(errors) from None


def _first(errors: ExceptionGroup[Exception]) -> Exception:
    return next(
        (error for error in errors.exceptions if isinstance(error, EngineError)), errors.exceptions[0]
    )
