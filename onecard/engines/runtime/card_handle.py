"""What of a card an engine is built on; and captured work that can be launched again with one call."""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

import torch

from onecard.engines.api import StatsSink
from onecard.engines.memory.arena import DeviceArena
from onecard.engines.memory.page_pool import PagePool
from onecard.engines.runtime.device_loop import DeviceLoop
from onecard.engines.runtime.step_clock import StepClock

Run = Callable[[], None]


class GraphBackend(Protocol):
    """Turns work on static buffers into something that replays it."""

    def capture(self, work: Run) -> Run:
        """Record `work`, which must read and write the same memory every time; returns what replays it."""
        ...


def graph_backend(device: torch.device) -> GraphBackend | None:
    """One a card; None for a device without graphs."""
    return CudaGraphs(device) if device.type == "cuda" else None


class CudaGraphs:
    """CUDA graphs of one card, in one memory pool: they never run at the same time, so each may use again
    what the one before it used. Launch nothing else while one is captured: it would be recorded too."""

    def __init__(self, device: torch.device):
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, work: Run) -> Run:
        with torch.cuda.device(self._device):
            # Once before: kernels get compiled and libraries take their workspaces, which can't be recorded.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                work()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                work()
        return graph.replay


@dataclass(frozen=True)
class CardHandle:
    """One card's memory, loop and clock, the pool of threads for tokenising, and where statistics go."""

    device: torch.device
    arena: DeviceArena
    pool: PagePool
    loop: DeviceLoop
    clock: StepClock
    graphs: GraphBackend | None
    """None where work can't be captured (a CPU)."""
    executor: Executor
    stats: StatsSink
