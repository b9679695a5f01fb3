"""A node whose engines answer at once, to measure the gateway alone."""

import asyncio
from collections.abc import Callable, Sequence
from contextvars import ContextVar

import numpy as np

from onecard.engines.api import (
    ChatPrompt,
    Embedder,
    EmbedRequest,
    EmbedResult,
    GenerateRequest,
    ModelInfo,
    ModelNotFoundError,
    NodeStatus,
    TextGenerator,
    TokenChunk,
)
from onecard.engines.paged.stream import TokenStream

NUM_TOKENS = 16
DIMENSIONS = 384

engine_seconds: ContextVar[list[float]] = ContextVar("engine_seconds")
"""Where the fake engines of the request at hand note the time they took."""


class Tokenizing:
    def __init__(self, info: ModelInfo, clock: Callable[[], float]):
        self.info = info
        self._clock = clock

    async def tokenize(self, prompt: str | ChatPrompt, add_special_tokens: bool | None = None) -> list[int]:
        return [1, 2, 3]

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return " token" * len(token_ids)

    def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        return [" token"] * len(token_ids)


class InstantStream(TokenStream):
    """`NUM_TOKENS` tokens, one a turn of the event loop, as a very fast engine's would come."""

    def __init__(self) -> None:
        super().__init__((1, 2, 3), None, 1)
        self._loop = asyncio.get_running_loop()
        self._next = self._loop.call_soon(self._step, 1)
        self.on_abort(lambda: self._next.cancel())

    def _step(self, i: int) -> None:
        if i < NUM_TOKENS:
            self._next = self._loop.call_soon(self._step, i + 1)
        self.push(TokenChunk(0, " token", (i,), finish_reason="length" if i == NUM_TOKENS else None))


class InstantGenerator(Tokenizing):
    """Implements `api.TextGenerator`."""

    async def generate(self, request: GenerateRequest) -> InstantStream:
        started = self._clock()
        stream = InstantStream()
        engine_seconds.get().append(self._clock() - started)
        return stream


class InstantEmbedder(Tokenizing):
    """Implements `api.Embedder`."""

    def __init__(self, info: ModelInfo, clock: Callable[[], float]):
        super().__init__(info, clock)
        self._vector = np.random.default_rng(0).standard_normal(DIMENSIONS, dtype=np.float32)

    async def embed(self, request: EmbedRequest, on_begun: Callable[[], None] | None = None) -> EmbedResult:
        started = self._clock()
        result = EmbedResult(np.tile(self._vector, (len(request.inputs), 1)), 3 * len(request.inputs))
        engine_seconds.get().append(self._clock() - started)
        return result


class FakeNode:
    """Implements `api.Node`: a `chat` and an `embedding` model."""

    def __init__(self, clock: Callable[[], float]) -> None:
        infos = [
            ModelInfo("chat", "llm", "chat", 0, 4096, frozenset({"generate"})),
            ModelInfo("embedding", "embedding", "e", 0, 256, frozenset({"embed"})),
        ]
        self._infos = infos
        self._engines: dict[str, TextGenerator | Embedder] = {
            "chat": InstantGenerator(infos[0], clock),
            "embedding": InstantEmbedder(infos[1], clock),
        }

    def models(self) -> list[ModelInfo]:
        return self._infos

    def engine(self, name: str) -> TextGenerator | Embedder:
        if name not in self._engines:
            raise ModelNotFoundError(f"The model `{name}` does not exist.", param="model")
        return self._engines[name]

    def status(self) -> NodeStatus:
        return NodeStatus("ready", (), ())

    def begin_drain(self) -> None: ...

    async def drained(self) -> None: ...

    async def stop(self) -> None: ...
