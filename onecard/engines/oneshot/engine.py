"""The event loop's side of an embedding model: what the gateway calls."""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from onecard.engines.api import (
    ChatPrompt,
    ContextLengthError,
    EmbedRequest,
    EmbedResult,
    FinishReason,
    InvalidRequestError,
    ModelInfo,
    RequestStats,
    StatsSink,
)
from onecard.engines.lifecycle.gate import Gate
from onecard.engines.oneshot.core import OneShotCore
from onecard.engines.oneshot.job import EmbedJob
from onecard.engines.oneshot.pooling import cut_dimensions
from onecard.engines.oneshot.sentence_config import SentenceConfig
from onecard.engines.runtime.inbox import Call
from onecard.engines.text.service import TextService


class Poster(Protocol):
    """The part of `runtime.DeviceLoop` that is needed here."""

    def post(self, call: Call) -> None: ...


class EmbeddingEngine:
    """Implements `api.Embedder`: tokenises, validates, and posts requests to the core on its device loop."""

    def __init__(
        self,
        info: ModelInfo,
        core: OneShotCore,
        loop: Poster,
        text: TextService,
        config: SentenceConfig,
        dimensions: int,
        gate: Gate,
        stats: StatsSink,
    ):
        """`dimensions`: of the model's own vectors; `info.max_model_len` bounds a text with its specials."""
        self.info = info
        self.core = core
        self.gate = gate
        self._loop = loop
        self._text = text
        self._config = config
        self._dimensions = dimensions
        self._stats = stats
        self.num_unfinished = 0
        """Requests being served."""
        self.num_finished = 0

    async def tokenize(self, prompt: str | ChatPrompt, add_special_tokens: bool | None = None) -> list[int]:
        return await self._text.tokenize(prompt, add_special_tokens)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return await self._text.detokenize(token_ids)

    def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        return self._text.token_strings(token_ids)

    async def embed(self, request: EmbedRequest, on_begun: Callable[[], None] | None = None) -> EmbedResult:
        """Raises `InvalidRequestError` before anything has run, `EngineFailedError` if a step fails."""
        self.num_unfinished += 1
        try:
            return await self._embed(request, on_begun)
        finally:
            self.num_unfinished -= 1

    async def _embed(self, request: EmbedRequest, on_begun: Callable[[], None] | None) -> EmbedResult:
        arrived = time.monotonic()
        self._check_dimensions(request.dimensions)
        limit = self._truncation(request.truncate_prompt_tokens)
        with self.gate.arriving():
            texts = self._fitted(await self._token_ids(request), limit)
        job = EmbedJob(
            priority=request.priority,
            texts=texts,
            vectors=np.empty((len(texts), self._dimensions), dtype=np.float32),
            result=asyncio.get_running_loop().create_future(),
            num_missing=len(texts),
            arrived=arrived,
            on_begun=on_begun,
        )
        await self._run(job)
        vectors = job.vectors
        if request.dimensions is not None and request.dimensions < self._dimensions:
            vectors = cut_dimensions(vectors, request.dimensions, self._config.pooling.normalize)
        return EmbedResult(vectors, sum(map(len, texts)))

    async def _run(self, job: EmbedJob) -> None:
        reason: FinishReason = "error"
        await self.gate.enter()
        self._loop.post(partial(self.core.add, job))
        try:
            await job.result
            reason = "stop"
        except asyncio.CancelledError:
            reason = "abort"
            # The flag stops what is queued at once; the core lets go of it before its next step.
            job.cancelled = True
            self._loop.post(partial(self.core.cancel, job))
            raise
        finally:
            self.num_finished += 1
            self._stats.record_request(self._request_stats(job, reason))

    def _request_stats(self, job: EmbedJob, reason: FinishReason) -> RequestStats:
        now = time.monotonic()
        return RequestStats(
            model=self.info.name,
            finish_reason=reason,
            prompt_tokens=sum(map(len, job.texts)),
            generation_tokens=0,
            cached_tokens=0,
            preemptions=0,
            n=1,
            max_tokens=None,
            e2e_seconds=now - job.arrived,
            queue_seconds=None if job.started is None else job.started - job.arrived,
            prefill_seconds=None if job.started is None else now - job.started,
        )

    # --- inputs -----------------------------------------------------------------------------------------

    async def _token_ids(self, request: EmbedRequest) -> list[list[int]]:
        if not request.inputs:
            raise InvalidRequestError("The input is empty: send at least one text.", param="input")
        texts = [text for text in request.inputs if isinstance(text, str)]
        encoded = iter(await self._text.encode_texts(texts, request.add_special_tokens) if texts else [])
        token_ids = []
        for given in request.inputs:
            if isinstance(given, str):
                token_ids.append(next(encoded))
            else:
                self._text.check_token_ids(given, param="input")
                token_ids.append(list(given))
        return token_ids

    def _fitted(self, texts: list[list[int]], truncate_to: int | None) -> list[list[int]]:
        for index, token_ids in enumerate(texts):
            if truncate_to is not None and len(token_ids) > truncate_to:
                texts[index] = token_ids = self._text.tokenizer.truncate(token_ids, truncate_to)
            if not token_ids:
                raise InvalidRequestError(
                    f"Input {index} is empty: send at least one token of text.", param="input"
                )
            if len(token_ids) > self.info.max_model_len:
                raise InputTooLongError(self.info.max_model_len, len(token_ids), index)
        return texts

    def _truncation(self, asked: int | None) -> int | None:
        """The most tokens of a text, where the request allows cutting."""
        longest = self.info.max_model_len
        if asked is None:
            return None
        if asked < -1 or asked == 0 or asked > longest:
            raise InvalidRequestError(
                f"'truncate_prompt_tokens' is {asked}; it may be 1 to {longest}, or -1 for that maximum.",
                param="truncate_prompt_tokens",
            )
        return longest if asked == -1 else asked

    def _check_dimensions(self, asked: int | None) -> None:
        if asked is None or asked == self._dimensions:
            return
        known = self._config.matryoshka_dimensions
        if not self._config.is_matryoshka:
            reason = (
                f"Model {self.info.name!r} does not support Matryoshka representation: its vectors have "
                f"{self._dimensions} dimensions and would lose their meaning if cut."
            )
        elif known and asked not in known:
            reason = (
                f"Model {self.info.name!r} can give {', '.join(map(str, known))} dimensions, not {asked}."
            )
        elif not 1 <= asked <= self._dimensions:
            reason = f"Model {self.info.name!r} can give 1 to {self._dimensions} dimensions, not {asked}."
        else:
            return
        raise InvalidRequestError(reason, param="dimensions")


class InputTooLongError(ContextLengthError):
    """`ContextLengthError` in the words of an embedding request."""

    def __init__(self, max_model_len: int, num_tokens: int, index: int):
        super().__init__(max_model_len, num_tokens)
        self.message = (
            f"This model's maximum context length is {max_model_len} tokens. However, you requested "
            f"{num_tokens} tokens in input {index} for embedding generation. Please reduce the length of the "
            "input, or set 'truncate_prompt_tokens' to -1."
        )
        self.args = (self.message,)
        self.param = "input"
