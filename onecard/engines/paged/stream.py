"""The event loop's end of a request: what the gateway reads."""

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
        self._notice: str | None = None
        self._unfinished = num_answers
        self._chunks: deque[TokenChunk] = deque()
        self._error: EngineError | None = None
        self._tell_reader: Callable[[], None] = lambda: None
        """Told while nobody reads: what comes is kept."""
        self._abort: Callable[[], None] | None = None
        self._paused = False
        self._tell_engine: Callable[[bool], None] | None = None

    def on_abort(self, abort: Callable[[], None]) -> None:
        """What `abort` calls, once, if the answers are not all there by then."""
        self._abort = abort

    def on_pause(self, tell: Callable[[bool], None]) -> None:
        """Who hears that the reader has enough for now (True), also if it has already, and then that it wants
        more."""
        self._tell_engine = tell
        if self._paused:
            tell(True)

    @property
    def done(self) -> bool:
        return self._unfinished == 0 or self._error is not None

    @property
    def notice(self) -> str | None:
        return self._notice

    @notice.setter
    def notice(self, text: str | None) -> None:
        self._notice = text
        self._tell_reader()

    def push(self, chunk: TokenChunk) -> None:
        if self.done:
            return
        self.completion_tokens += len(chunk.token_ids)
        self._unfinished -= chunk.finish_reason is not None
        self._chunks.append(chunk)
        self._tell_reader()

    def fail(self, error: EngineError) -> None:
        """What came before is still there to be taken. Of a stream that has ended it's nobody's concern."""
        if self.done:
            return
        self._error = error
        self._tell_reader()

    def abort(self) -> None:
        if self._abort is not None and not self.done:
            self._abort()
            self._unfinished = 0
            self._tell_reader()
        self._abort = None

    def pause(self) -> None:
        self._pause(True)

    def resume(self) -> None:
        self._pause(False)

    def _pause(self, paused: bool) -> None:
        if paused is not self._paused:
            self._paused = paused
            if self._tell_engine is not None and not self.done:
                self._tell_engine(paused)

    def take(self) -> list[TokenChunk] | None:
        if self._chunks:
            taken = list(self._chunks)
            self._chunks.clear()
            return taken
        if self._error is not None:
            raise self._error
        return None if self._unfinished == 0 else []

    def on_ready(self, callback: Callable[[], None]) -> None:
        self._tell_reader = callback

    def __aiter__(self) -> AsyncIterator[TokenChunk]:
        return self

    async def __anext__(self) -> TokenChunk:
        while not self._chunks:
            if self.take() is None:
                raise StopAsyncIteration
            filled = asyncio.Event()
            self.on_ready(filled.set)
            await filled.wait()
        return self._chunks.popleft()
