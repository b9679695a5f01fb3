"""Runs an embedding model's steps before it serves: the largest one, and a few small ones."""

import asyncio

import numpy as np

from onecard.engines.encoder.core import EncoderCore
from onecard.engines.encoder.job import EmbedJob
from onecard.engines.step_size import StepSize


class WarmUp:
    """Drives a core that isn't on its loop yet, with texts of random tokens. Leaves nothing behind."""

    def __init__(
        self, core: EncoderCore, size: StepSize, vocab_size: int, max_model_len: int, dimensions: int
    ):
        self._core = core
        self._size = size
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._dimensions = dimensions

    def largest_step(self) -> None:
        """As many of the longest texts as a step may have; one, if it is longer than a step."""
        size, length = self._size, self._max_model_len
        self._run(length, max(1, min(size.max_num_seqs, size.max_num_batched_tokens // length)))

    def usual_steps(self) -> None:
        for length in sorted({2, min(17, self._max_model_len), min(128, self._max_model_len)}):
            for count in (1, 5):
                self._run(length, count)

    def leave(self) -> None:
        self._core.idle()

    def _run(self, length: int, count: int) -> None:
        texts = [[(7919 * i + 31 * j) % self._vocab_size for j in range(length)] for i in range(count)]
        vectors = np.empty((count, self._dimensions), dtype=np.float32)
        loop = asyncio.new_event_loop()  # nobody waits for the result, but a job has one
        result = loop.create_future()
        try:
            self._core.add(
                EmbedJob(texts=texts, vectors=vectors, result=result, num_missing=count, arrived=0.0)
            )
            while self._core.has_work():
                step = self._core.launch()
                if step is not None:  # a step that found no memory is tried again, smaller
                    self._core.collect(step)
        finally:
            result.cancel()  # or it would complain, should the job fail, that nobody asked
            loop.close()
