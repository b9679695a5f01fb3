"""A one-shot model's first texts: tokens that mean nothing (`step.warm_up.Practice`)."""

from collections.abc import Iterator

import numpy as np

from onecard.engines.oneshot.core import OneShotCore
from onecard.engines.oneshot.job import Job
from onecard.engines.step.sizes import StepSize
from onecard.engines.step.warm_up import Waves


class OneShotPractice:
    """`width`: numbers a text comes to."""

    def __init__(self, core: OneShotCore, size: StepSize, vocab_size: int, max_model_len: int, width: int):
        self._core = core
        self._size = size
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._width = width

    def largest(self) -> Waves:
        """As many of the longest texts as a step may have; one, if it is longer than a step."""
        length, tokens = self._max_model_len, self._core.max_step_tokens
        return [[self._job(length, max(1, min(self._size.max_num_seqs, tokens // length)))]]

    def usual(self) -> Iterator[Waves]:
        for length in sorted({2, min(17, self._max_model_len), min(128, self._max_model_len)}):
            for count in (1, 5):
                yield [[self._job(length, count)]]

    def _job(self, length: int, count: int) -> Job:
        texts = [[(7919 * i + 31 * j) % self._vocab_size for j in range(length)] for i in range(count)]
        results = np.empty((count, self._width), dtype=np.float32)
        return Job(texts=texts, results=results, num_missing=count, arrived=0.0)
