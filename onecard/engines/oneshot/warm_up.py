"""Runs an embedding model's steps before it serves: the largest one, and a few small ones."""

import asyncio
from collections.abc import Iterator

import numpy as np

from onecard.engines.oneshot.core import OneShotCore
from onecard.engines.oneshot.job import EmbedJob
from onecard.engines.runtime.step_budget import BRIEF_STEP_SECONDS
from onecard.engines.step.step_size import StepSize


class WarmUp:
    """Drives a core between its loop's steps, with texts of random tokens. Leaves nothing behind.

    `brief` on a CPU, where nothing is compiled, and long steps would only keep others waiting.
    """

    def __init__(
        self,
        core: OneShotCore,
        size: StepSize,
        vocab_size: int,
        max_model_len: int,
        dimensions: int,
        brief: bool = False,
    ):
        self._brief = brief
        self._core = core
        self._size = size
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._dimensions = dimensions

    def largest_step(self) -> None:
        """As many of the longest texts as a step may have; one, if it is longer than a step."""
        size, length = self._size, self._max_model_len
        for _ in self._run(length, max(1, min(size.max_num_seqs, size.max_num_batched_tokens // length))):
            pass

    def usual_steps(self) -> Iterator[None]:
        """One step at a time, so that other engines' may run between them."""
        for length in sorted({2, min(17, self._max_model_len), min(128, self._max_model_len)}):
            for count in (1, 5):
                yield from self._run(length, count)

    def leave(self) -> None:
        self._core.idle()

    def _run(self, length: int, count: int) -> Iterator[None]:
        core = self._core
        texts = [[(7919 * i + 31 * j) % self._vocab_size for j in range(length)] for i in range(count)]
        vectors = np.empty((count, self._dimensions), dtype=np.float32)
        loop = asyncio.new_event_loop()  # nobody waits for the result, but a job has one
        result = loop.create_future()
        job = EmbedJob(texts=texts, vectors=vectors, result=result, num_missing=count, arrived=0.0)
        core.warming = True
        try:
            core.add(job)
            while core.num_waiting:
                step = core.launch(BRIEF_STEP_SECONDS if self._brief else None)
                if step is not None:  # a step that found no memory is tried again, smaller
                    core.collect(step)
                    yield
        except GeneratorExit:
            core.cancel(job)
            raise
        finally:
            core.warming = False
            result.cancel()  # or it would complain, should the job fail, that nobody asked
            loop.close()
