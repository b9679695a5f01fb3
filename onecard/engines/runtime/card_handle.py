"""What of a card an engine is built on."""

from concurrent.futures import Executor
from dataclasses import dataclass

import torch

from onecard.engines.api import StatsSink
from onecard.engines.memory.arena import DeviceArena
from onecard.engines.memory.page_pool import PagePool
from onecard.engines.runtime.cuda_graphs import GraphBackend
from onecard.engines.runtime.device_loop import DeviceLoop
from onecard.engines.runtime.step_clock import StepClock


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
