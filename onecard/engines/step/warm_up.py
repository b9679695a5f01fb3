"""Runs an engine's steps before it serves: kernels get compiled, libraries take their memory, and the largest
step shows what it needs."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from onecard.engines.runtime.step_budget import BRIEF_STEP_SECONDS
from onecard.engines.step.core import Step, StepCore

MOST_TRIES = 20
"""Of a step: one that finds no memory is half as large the next time, one that finds no pages is none."""

Waves = Sequence[Sequence[Any]]
"""Requests that come together, then those that come a step later, and so on."""


class NoPagesError(Exception):
    """Others hold the pages that a first request needs."""


class Practice(Protocol):
    """Requests of a shape, of tokens that mean nothing, whose answers nobody reads."""

    def largest(self) -> Waves:
        """All tokens and all requests that a step may have; as far as the cache holds them."""
        ...

    def usual(self) -> Iterator[Waves]:
        """What clients will ask, round by round."""
        ...


class WarmUp:
    """Drives a core between its loop's steps. `core.rest` leaves nothing behind.

    `brief` on a CPU, where nothing is compiled, and long steps would only keep others waiting. Steps raise
    `NoPagesError` where the cache has no pages for them now.
    """

    def __init__(self, core: StepCore[Any, Any], practice: Practice, brief: bool = False):
        self._core = core
        self._practice = practice
        self._brief = brief

    def largest_step(self) -> None:
        for _ in self._run(self._practice.largest()):
            pass

    def usual_steps(self) -> Iterator[None]:
        """One at a time, so that other engines' may run between them."""
        for waves in self._practice.usual():
            yield from self._run(waves)

    def _run(self, waves: Waves) -> Iterator[None]:
        core, finished, asked = self._core, self._core.num_finished, list[Any]()
        coming = iter(waves)
        core.warming = True
        try:
            while (wave := next(coming, None)) is not None or core.has_unfinished():
                for request in wave or ():
                    core.add(request)
                    asked.append(request)
                core.collect(self._step())
                yield
        except (NoPagesError, GeneratorExit):
            for request in asked:
                core.abort(request)
            raise
        finally:
            core.num_finished = finished
            core.warming = False

    def _step(self) -> Step[Any, Any]:
        for _ in range(MOST_TRIES):
            step = self._core.launch(BRIEF_STEP_SECONDS if self._brief else None)
            if step is not None:
                return step
        raise NoPagesError(f"{self._core.name} finds no room for its first steps")
