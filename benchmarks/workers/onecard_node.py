"""A onecard node of one model in this process, for the workers."""

import asyncio
from pathlib import Path

from onecard.engines.api import Node, RequestStats, StepStats
from onecard.engines.factory import start_node
from onecard.registry.spec import CardSpec, EngineSpec, MemoryAmount, ModelSpec, Registry

CARD_BYTES = 3 << 30


class NoStats:
    """Implements `api.StatsSink`."""

    def record_step(self, stats: StepStats) -> None: ...

    def record_request(self, stats: RequestStats) -> None: ...


async def start(path: Path, kind: str, dtype: str) -> Node:
    """A started node whose one model is called `model`; settings are the registry's defaults."""
    model = ModelSpec(name="model", kind=kind, source=str(path), engine=EngineSpec(dtype=dtype))  # type: ignore[arg-type]
    card = CardSpec(memory=MemoryAmount(nbytes=CARD_BYTES))
    return await start_node(Registry(cards=(card,), models=(model,)), {"model": path}, NoStats())


def run_with_loop(path: Path, kind: str, dtype: str) -> tuple[asyncio.AbstractEventLoop, Node]:
    """The node and the event loop it belongs to (uvloop's where there is one, as `onecard serve` does)."""
    try:
        import uvloop

        loop = uvloop.new_event_loop()
    except ImportError:
        loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop, loop.run_until_complete(start(path, kind, dtype))
