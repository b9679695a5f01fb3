"""A onecard node of one model in this process, for the workers."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onecard.engines.api import Node, RequestStats, StepStats
from onecard.engines.node.factory import start_node
from onecard.registry.spec import CardSpec, EngineSpec, MemoryAmount, ModelSpec, Registry

CARD_BYTES = 3 << 30


@dataclass
class SummedStats:
    """Implements `api.StatsSink`: how many steps there were, and where their seconds went."""

    steps: int = 0
    host_seconds: float = 0.0
    device_seconds: float = 0.0
    gap_seconds: float = 0.0
    preemptions: int = 0

    def reset(self) -> None:
        vars(self).update(vars(SummedStats()))

    def record_step(self, stats: StepStats) -> None:
        self.steps += 1
        self.host_seconds += stats.host_seconds
        self.device_seconds += stats.device_seconds
        self.gap_seconds += stats.gap_seconds
        self.preemptions += stats.preemptions

    def record_request(self, stats: RequestStats) -> None: ...


async def start(
    path: Path, kind: str, dtype: str, sums: SummedStats, memory: MemoryAmount, **engine: Any
) -> Node:
    """A started node whose one model is called `model`; the other settings are the registry's defaults."""
    spec = EngineSpec(dtype=dtype, **engine)  # type: ignore[arg-type]
    model = ModelSpec(name="model", kind=kind, source=str(path), engine=spec)  # type: ignore[arg-type]
    registry = Registry(cards=(CardSpec(memory=memory),), models=(model,))
    return await start_node(registry, {"model": path}, sums)


def run_with_loop(
    path: Path,
    kind: str,
    dtype: str,
    sums: SummedStats | None = None,
    memory: MemoryAmount | None = None,
    **engine: Any,
) -> tuple[asyncio.AbstractEventLoop, Node]:
    """The node and the event loop it belongs to (uvloop's where there is one, as `onecard serve` does).

    `memory`: what the card may take (default: a fixed few GiB); `engine`: fields of `EngineSpec`.
    """
    try:
        import uvloop

        loop = uvloop.new_event_loop()
    except ImportError:
        loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    node = start(
        path, kind, dtype, sums or SummedStats(), memory or MemoryAmount(nbytes=CARD_BYTES), **engine
    )
    return loop, loop.run_until_complete(node)
