"""What every engine's steps have in common: try, undo, try smaller, what is in flight, times, fail, give up.

A shape of step (`paged`, `oneshot`) says what to schedule, what to run, and what the results mean.
"""

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import nn

from onecard.engines.api import RequestStats, StatsSink, StepStats
from onecard.engines.memory.block_pool import BlockPool
from onecard.engines.runtime.failures import classify
from onecard.engines.runtime.inbox import Delivery
from onecard.engines.runtime.step_budget import StepBudget, StepLimit, StepShape
from onecard.engines.runtime.step_clock import StepClock, StepMark
from onecard.engines.step.sizes import StepSize
from onecard.registry.spec import ModelSpec


class Shaped(Protocol):
    """What a step was scheduled to compute."""

    @property
    def shape(self) -> StepShape: ...


class Marked(Protocol):
    """What a launched step leaves on the card, to be read once `mark.wait` has returned."""

    @property
    def mark(self) -> StepMark: ...


Batch = TypeVar("Batch", bound=Shaped)
Output = TypeVar("Output", bound=Marked)


class Graphs(Protocol):
    """Steps of some sizes, ready for replay once they are captured."""

    sizes: list[int]

    def capture(self, size: int) -> None: ...


StatsButTimes = Callable[..., StepStats]
"""What a shape says of a step in its `api.StepStats`; times are the core's."""


@dataclass(frozen=True, slots=True)
class Step(Generic[Batch, Output]):
    """A launched step; `launch_seconds` is what that took of the host."""

    batch: Batch
    output: Output
    launch_seconds: float


class StepCore(ABC, Generic[Batch, Output]):
    """A `runtime.StepEngine`. One thread touches it: the device loop's, but for what says otherwise.

    Steps are collected in the order in which they were launched, and the next one may be launched before.
    """

    builds_on_steps_in_flight: ClassVar[bool]
    """Whether a step reads what those before it have written: then it fails with them."""

    def __init__(
        self,
        name: str,
        weight: float,
        priority: int,
        clock: StepClock,
        stats: StatsSink,
        deliver: Callable[[list[Delivery]], None],
    ):
        """`deliver` hands clients what doesn't come of a collected step."""
        self.name = name
        self.weight = weight
        self.priority = priority
        self.num_finished = 0
        self.warming = False
        """A warm-up drives the steps, between others' on the loop: the loop itself leaves them alone."""
        self._clock = clock
        self._stats = stats
        self._deliver = deliver
        self._budget = StepBudget()
        self._limit = StepLimit(name)
        self._most_tokens: int | None = None
        """Of a step, where the workspace has turned out to hold no more."""
        self._in_flight: deque[Step[Batch, Output]] = deque()
        self._retrying = False
        """The last step that was tried had no memory, and was undone."""
        self._suspect: list[Batch] = []
        """The step being launched or collected, and in the latter case those that build on it: what `fail` is
        about."""

    # --- what a shape of step says ------------------------------------------------------------------------

    @abstractmethod
    def use(self, model: nn.Module | None) -> None:
        """Steps run on `model` from now on, which has the addresses of the one before; None: it sleeps."""

    def close(self) -> None:
        """The engine leaves its card for good: hold nothing there."""
        self.use(None)

    @property
    def graphs(self) -> Graphs | None:
        return None

    @property
    def blocks(self) -> BlockPool | None:
        """Its KV blocks; None for an engine that keeps nothing between steps."""
        return None

    @abstractmethod
    def add(self, request: Any) -> None: ...

    @abstractmethod
    def abort(self, request: Any) -> list[Delivery]:
        """Its client has gone: what waits of it is dropped. Aborting a finished one does nothing."""

    @abstractmethod
    def has_unfinished(self) -> bool:
        """Whether any request is unfinished. Any thread may ask."""

    @abstractmethod
    def urgency(self) -> int: ...

    @property
    @abstractmethod
    def num_running(self) -> int:
        """Any thread may ask."""

    @property
    @abstractmethod
    def num_waiting(self) -> int:
        """Any thread may ask."""

    @abstractmethod
    def _has_work(self) -> bool: ...

    @abstractmethod
    def _schedule(self, seconds: float | None) -> Batch | None:
        """The next step, of `seconds` and of `self._limit.tokens` at most where they bound it."""

    @abstractmethod
    def _run(self, batch: Batch) -> Output:
        """Enqueue it. On a CPU it is computed when this returns."""

    @abstractmethod
    def _is_smallest(self, batch: Batch) -> bool:
        """Whether there is no smaller step to try."""

    @abstractmethod
    def _undo(self, batch: Batch) -> None:
        """The newest step never ran."""

    @abstractmethod
    def _read(self, batch: Batch, output: Output) -> tuple[list[Delivery], StatsButTimes]:
        """What a step that has been computed means for its requests."""

    @abstractmethod
    def _lose(self, suspect: list[Batch], error: BaseException) -> list[Delivery]:
        """Fail the requests of these steps (all of them, if it broke before there was a step), free what they
        held. Raises where that can't be done, or where the books don't add up then."""

    @abstractmethod
    def _lose_all(self, error: BaseException) -> list[Delivery]: ...

    @property
    @abstractmethod
    def max_step_tokens(self) -> int:
        """Of the next step at most, with memory and time enough."""

    @property
    @abstractmethod
    def min_step_tokens(self) -> int:
        """What a step must be able to hold."""

    @abstractmethod
    def limit_steps(self, max_tokens: int, max_seqs: int | None = None) -> None:
        """Steps hold no more from now on; None: as many requests as before."""

    # --- requests -----------------------------------------------------------------------------------------

    def has_requests(self) -> bool:
        """Whether a client's is unfinished. Any thread may ask."""
        return not self.warming and self.has_unfinished()

    def _finished(self, stats: RequestStats) -> Delivery:
        self.num_finished += 1
        return partial(self._stats.record_request, stats)

    # --- runtime.StepEngine -------------------------------------------------------------------------------

    def has_work(self) -> bool:
        return not self.warming and self._has_work()

    def launch(self, seconds: float | None = None) -> Step[Batch, Output] | None:
        """A step that finds no memory is undone, and the next call tries a smaller one: once those in flight
        have been read, which hold memory, too, and may build on what the undone one left half done."""
        if self._retrying and self._in_flight:
            return None
        began = time.perf_counter()
        batch = self._schedule(seconds)
        if batch is None:
            return None
        self._suspect = [batch]
        try:
            output = self._run(batch)
        except Exception as error:
            if classify(error) != "memory" or (self._retrying and self._is_smallest(batch)):
                raise
            self._undo(batch)
            self._limit.shrink(batch.shape.tokens)
            self._suspect, self._retrying = [], True
        else:
            step = Step(batch, output, time.perf_counter() - began)
            self._suspect, self._retrying = [], False
            self._in_flight.append(step)
            return step
        # Not before the error is gone, and with it what its frames hold.
        torch.cuda.empty_cache()
        return None

    def collect(self, step: Step[Batch, Output]) -> list[Delivery]:
        began = time.perf_counter()
        assert step is self._in_flight[0], "steps are collected in order"
        self._in_flight.popleft()
        self._suspect = [step.batch]
        if self.builds_on_steps_in_flight:
            self._suspect += [later.batch for later in self._in_flight]
        mark = step.output.mark
        mark.wait()
        waited = time.perf_counter() - began
        deliveries, stats = self._read(step.batch, step.output)
        shape = step.batch.shape
        self._budget.observe(shape, mark.device_seconds)
        self._limit.grow(shape.tokens, self.max_step_tokens)
        host = step.launch_seconds + time.perf_counter() - began - waited
        deliveries.append(self._report(mark, host, stats))
        self._suspect = []
        return deliveries

    def _report(self, mark: StepMark, host: float, stats: StatsButTimes) -> Delivery:
        """`host`: seconds of launching and collecting, without waiting for the card. A CPU computes while it
        launches: that is taken out here."""
        device = mark.device_seconds
        host -= 0.0 if self._clock.asynchronous else device
        whole = stats(host_seconds=host, device_seconds=device, gap_seconds=mark.gap_seconds)
        return partial(self._stats.record_step, whole)

    def fail(self, error: BaseException) -> list[Delivery]:
        suspect, self._suspect, self._retrying = self._suspect, [], False
        return self._lose(suspect, error)

    def give_up(self, error: BaseException) -> list[Delivery]:
        self._suspect, self._retrying = [], False
        return self._lose_all(error)

    @abstractmethod
    def idle(self) -> None: ...

    def rest(self) -> None:
        """Nothing runs: give back all memory of the card but the weights'. Raises where books are wrong."""
        self.idle()

    # --- the size of its steps ----------------------------------------------------------------------------

    def shrink_steps(self, tokens: int) -> None:
        """No step holds more for good: the workspace has no more."""
        self._most_tokens = tokens
        self.limit_steps(tokens)

    def retune(self, spec: ModelSpec, size: StepSize) -> None:
        """What may change while requests run; no step gets larger than the engine was built for."""
        self.weight, self.priority = spec.weight, spec.priority
        most = size.max_num_batched_tokens
        self.limit_steps(min(most, self._most_tokens or most), size.max_num_seqs)


def distinct(requests: Iterable[Any]) -> list[Any]:
    """Each once, in order of first appearance."""
    return list({id(request): request for request in requests}.values())
