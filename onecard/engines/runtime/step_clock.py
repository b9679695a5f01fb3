"""When a card's steps begin and end, on the card's own clock: device time, and the gaps between steps."""

import time
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

Moment = TypeVar("Moment")


class StepMark(Protocol):
    """One step on the card. The figures are known once `wait` has returned."""

    def end(self) -> None:
        """The step's last operation has been enqueued."""
        ...

    def wait(self) -> None:
        """Returns when the step has been computed."""
        ...

    @property
    def device_seconds(self) -> float: ...

    @property
    def gap_seconds(self) -> float:
        """For how long the card did nothing before this step, though there was work."""
        ...


class StepClock(Protocol):
    """One a card, shared by its engines: their steps run one after another."""

    asynchronous: bool
    """Whether a step goes on computing after it was launched."""

    def begin(self) -> StepMark: ...

    def rest(self) -> None:
        """There is no more work: the time until the next step is no gap."""
        ...


def step_clock(device: torch.device) -> StepClock:
    return CudaStepClock() if device.type == "cuda" else HostStepClock()


class _Clock(Generic[Moment]):
    def __init__(self) -> None:
        self.last_end: Moment | None = None
        """Of the step before, if there was work ever since."""

    def rest(self) -> None:
        self.last_end = None


class HostStepClock(_Clock[float]):
    """For a CPU: what launches a step computes it."""

    asynchronous = False

    def begin(self) -> "_HostMark":
        return _HostMark(self, time.perf_counter(), self.last_end)


@dataclass
class _HostMark:
    clock: HostStepClock
    began: float
    previous_end: float | None
    ended: float = 0.0

    def end(self) -> None:
        self.ended = self.clock.last_end = time.perf_counter()

    def wait(self) -> None:
        pass

    @property
    def device_seconds(self) -> float:
        return self.ended - self.began

    @property
    def gap_seconds(self) -> float:
        return 0.0 if self.previous_end is None else self.began - self.previous_end


class CudaStepClock(_Clock[torch.cuda.Event]):
    """For a GPU: events on the current stream."""

    asynchronous = True

    def begin(self) -> "_CudaMark":
        began = torch.cuda.Event(enable_timing=True)
        began.record()
        return _CudaMark(self, began, self.last_end)


@dataclass
class _CudaMark:
    clock: CudaStepClock
    began: torch.cuda.Event
    previous_end: torch.cuda.Event | None
    ended: torch.cuda.Event | None = None

    def end(self) -> None:
        self.ended = self.clock.last_end = torch.cuda.Event(enable_timing=True)
        self.ended.record()

    def wait(self) -> None:
        assert self.ended is not None
        self.ended.synchronize()

    @property
    def device_seconds(self) -> float:
        assert self.ended is not None
        return self.began.elapsed_time(self.ended) / 1e3

    @property
    def gap_seconds(self) -> float:
        return 0.0 if self.previous_end is None else self.previous_end.elapsed_time(self.began) / 1e3
