"""The event loop's end of a request: what the gateway iterates over."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from onecard.engines.api import EngineError, TokenChunk, TokenLogprob


class TokenStream:
    """Implements `api.GenerationStream`. Lives on the event loop's thread; the device loop reaches it by
    deliveries.

    `num_answers` answers share it; it ends after that many chunks with a finish reason, or with an error.
    """

    def __init__(self, prompt_token_ids: Sequence[int], prompt_text: str | None, num_answers: int):
        self.prompt_token_ids = prompt_token_ids
        self.prompt_text = prompt_text
        self.prompt_logprobs: Sequence[TokenLogprob | None] | None = None
        self.cached_tokens = 0
        self.completion_tokens = 0
        self._unfinished = num_answers
        self._chunks: deque[TokenChunk] = deque()
        self._error: EngineError | None = None
        self._filled = asyncio.Event()
        self._abort: Callable[[], None] | None = None

    def on_abort(self, abort: Callable[[], None]) -> None:
        """What `abort` calls, once, if the answers are not all there by then."""
        self._abort = abort

    @property
    def done(self) -> bool:
        return self._unfinished == 0 or self._error is not None

    def push(self, chunk: TokenChunk) -> None:
        if self.done:
            return
        self.completion_tokens += len(chunk.token_ids)
        self._unfinished -= chunk.finish_reason is not None
        self._chunks.append(chunk)
        self._filled.set()

    def fail(self, error: EngineError) -> None:
        self._error = error
        self._filled.set()

    def abort(self) -> None:
        if self._abort is not None and not self.done:
            self._abort()
            self._unfinished = 0
            self._filled.set()
        self._abort = None

    def __aiter__(self) -> AsyncIterator[TokenChunk]:
        return self

    async def __anext__(self) -> TokenChunk:
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._unfinished == 0:
                raise StopAsyncIteration
            self._filled.clear()
            await self._filled.wait()
        return self._chunks.popleft()
