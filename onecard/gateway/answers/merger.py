"""The streams of one HTTP request, read as one: batches of whatever is ready."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from onecard.engines.api import (
    EngineFailedError,
    FinishReason,
    GenerationStream,
    ShuttingDownError,
    TokenChunk,
)

KEEP_ALIVE = "keep-alive"

MOST_UNREAD = 4096
"""What may wait for a slow reader before its streams pause; see `size`. Some 0.6 MiB, and more than one step
of 128 answers with 20 alternatives each."""

PIECE = 2048
"""What is rendered at once: some 10 ms of the event loop."""

Batch = list[tuple[int, TokenChunk]]
"""Chunks, each with the number of its stream."""


class StreamMerger:
    """Merges streams and hands out, in one batch, all chunks that have come since the last batch.

    A slow client thus gets few large writes instead of many small ones. There is no task and no timeout a
    chunk: a stream that has more calls back, its chunks are put aside, and whoever waits is woken once.
    Nor is memory: where too much waits for a slow client, the streams pause until it has been handed out.
    `quiet`: the silence in seconds after which `batch` speaks up. `on_begun` is called once for each stream
    that waits no longer. Close it at the end (`with`).
    """

    def __init__(
        self,
        streams: Sequence[GenerationStream],
        n: int,
        quiet: float | None = None,
        on_begun: Callable[[], None] = lambda: None,
    ):
        self._streams = streams
        self._unfinished = len(streams) * n
        self._open = set(range(len(streams)))
        self._ready: Batch = []
        self._error: Exception | None = None
        self._unread = 0
        self._wanted = 0
        """Nobody is woken for less."""
        self._paused = False
        self._begun = False
        self._on_begun = on_begun
        self._not_begun = set(self._open)
        self._told: str | None = None
        self._bell = Bell(quiet)
        for i, stream in enumerate(streams):
            stream.on_ready(partial(self._read, i))
            self._read(i)

    def __enter__(self) -> "StreamMerger":
        return self

    def __exit__(self, *_: object) -> None:
        self._bell.close()
        for stream in self._streams:
            stream.on_ready(
                _nobody
            )  # else stream and merger keep each other until the garbage collector comes

    @property
    def finished(self) -> bool:
        """All answers have been handed out whole."""
        return not (self._ready or self._open or self._error)

    async def batch(self) -> Batch | str:
        """What is ready, merged by answer, and empty at the end; or a comment for a client that waits.

        The comment is a stream's notice while nothing has come yet, else `KEEP_ALIVE` after a silence. Raises
        what a stream raised, after everything before it was handed out.
        """
        self._wanted = 0
        while not (self._ready or self._over):
            if (notice := self._untold_notice()) is not None:
                return notice
            if not await self._bell.wait():
                return KEEP_ALIVE
        if self._error is not None and not self._ready:
            raise self._error
        return self._hand_out()

    async def piece(self) -> Batch:
        """What has come, not merged, once it is much or all there is; empty at the end. Raises what a stream
        raised, at once."""
        self._wanted = PIECE
        while not (self._over or self._unread >= PIECE):
            await self._bell.wait()
        if self._error is not None:
            raise self._error
        return self._take()

    @property
    def _over(self) -> bool:
        return not self._open or self._error is not None

    def _read(self, i: int) -> None:
        if i not in self._open:
            return
        try:
            while chunks := self._streams[i].take():
                self._tell_begun(i)
                for chunk in chunks:
                    self._put_aside(i, chunk)
            if chunks is None:
                self._end(i)
        except Exception as error:  # raised to whoever reads, after what came before it
            self._error = self._error or error
        if self._over or self._unread >= self._wanted:
            self._bell.ring()

    def _tell_begun(self, i: int) -> None:
        if i in self._not_begun:
            self._not_begun.remove(i)
            self._on_begun()

    def _put_aside(self, i: int, chunk: TokenChunk) -> None:
        if chunk.finish_reason is not None:
            check_finish(chunk.finish_reason)
            self._unfinished -= 1
        self._ready.append((i, chunk))
        self._unread += size(chunk)
        if self._unread > MOST_UNREAD and not self._paused:
            self._paused = True
            for j in self._open:
                self._streams[j].pause()

    def _end(self, i: int) -> None:
        self._tell_begun(i)
        self._open.remove(i)
        if self._unfinished and not self._open:
            raise EngineFailedError("The model ended the stream before all answers were finished.")

    def _hand_out(self) -> Batch:
        batch = self._take()
        return merge(batch) if len(batch) > 1 else batch

    def _take(self) -> Batch:
        batch, self._ready, self._unread = self._ready, [], 0
        self._begun = True
        if self._paused:
            self._paused = False
            for i in self._open:
                self._streams[i].resume()
        return batch

    def _untold_notice(self) -> str | None:
        if self._begun:
            return None
        for stream in self._streams:
            if stream.notice is not None and stream.notice != self._told:
                self._told = stream.notice
                return self._told
        return None


def size(chunk: TokenChunk) -> int:
    """In tokens and alternatives to tokens: what memory and the time of rendering go by."""
    if chunk.logprobs is None:
        return 1
    return len(chunk.logprobs) + sum(len(entry.top) for entry in chunk.logprobs)


def in_pieces(batch: Batch) -> list[Batch]:
    """At least one, each of whole chunks and of no more than `PIECE` unless it is a single one."""
    pieces: list[Batch] = [[]]
    room = PIECE
    for item in batch:
        taken = size(item[1])
        if taken > room and pieces[-1]:
            pieces.append([])
            room = PIECE
        pieces[-1].append(item)
        room -= taken
    return pieces


def merge(batch: Batch) -> Batch:
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


def _nobody() -> None:
    """Called back when nobody reads any more."""


class Bell:
    """Wakes the one who waits: at once when it rings, or after `patience` seconds without a ring.

    One timer serves all waits, and waiting doesn't touch it: when it goes off it looks how long the silence
    has lasted, and sets itself again. (A timeout a wait would cost more than the wait.) Without a `patience`
    it waits for a ring however long. Close it at the end.
    """

    def __init__(self, patience: float | None):
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._silent_since = 0.0
        self._waiter: asyncio.Future[bool] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def ring(self) -> None:
        """Wake the waiter; nothing happens where nobody waits."""
        self._answer(True)

    async def wait(self) -> bool:
        """True once it has rung, False after a silence."""
        self._silent_since = self._loop.time()
        if self._timer is None and self._patience is not None:
            self._set_timer(self._patience)
        self._waiter = self._loop.create_future()
        return await self._waiter

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self, patience: float) -> None:
        self._timer = self._loop.call_at(self._silent_since + patience, self._look, patience)

    def _look(self, patience: float) -> None:
        if self._loop.time() < self._silent_since + patience:
            self._set_timer(patience)
        else:
            self._timer = None
            self._answer(False)

    def _answer(self, rung: bool) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(rung)
