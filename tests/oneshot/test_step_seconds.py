"""Steps of an encoder that have to be short, whatever the lengths of their texts."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from onecard.engines.oneshot.job import Job

QUANTUM = 0.05


def true_seconds(lengths: Sequence[int]) -> float:
    return 2e-3 + 2e-5 * sum(lengths) + 1e-4 * len(lengths) + 5e-8 * sum(n * n for n in lengths)


@dataclass
class MadeUpClock:
    """A `StepClock` and its mark: a step takes what its texts take in truth."""

    core: Any = None
    asynchronous = False
    gap_seconds = 0.0
    device_seconds = 0.0

    def begin(self) -> "MadeUpClock":
        return self

    def end(self) -> None:
        self.device_seconds = true_seconds(lengths_of(self.core._suspect[0]))

    def wait(self) -> None: ...

    def rest(self) -> None: ...


def lengths_of(step: Any) -> list[int]:
    return [len(entry.token_ids) for entry in step.entries]


@pytest.fixture
def core(make_bench: Any) -> Any:
    core = make_bench(max_tokens=8192, max_seqs=64, max_model_len=8192).core
    core._clock = MadeUpClock(core)
    return core


def run(core: Any, lengths: Sequence[int], seconds: float | None = None) -> list[list[int]]:
    """The steps that these texts are run in."""
    core.add(job(lengths))
    steps = []
    while core.has_work():
        step = core.launch(seconds)
        steps.append(lengths_of(step.batch))
        core.collect(step)
    return steps


def job(lengths: Sequence[int]) -> Job:
    texts, vectors = [[1] * length for length in lengths], np.empty((len(lengths), 4), dtype=np.float32)
    return Job(texts=texts, results=vectors, result=None, num_missing=len(texts), arrived=0.0)


def test_steps_of_long_texts_fill_a_quantum_as_those_of_short_ones_do(core: Any) -> None:
    random_source = random.Random(0)
    for _ in range(150):
        longest = random_source.choice([30, 200, 200, 3000])
        count = random_source.randint(1, 1 + 1000 // longest)
        run(core, [random_source.randint(4, longest) for _ in range(count)])
    for length in (15, 120, 600, 2000):
        *steps, _last = run(core, [length] * 150, QUANTUM)
        for step in steps:
            if len(step) == 64:  # as many as a step may have
                continue
            assert true_seconds(step) <= 1.1 * QUANTUM or len(step) == 1
            assert true_seconds([*step, length]) >= 0.9 * QUANTUM
