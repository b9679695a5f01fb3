"""How late the event loop is: while one call holds it, nobody's token is sent and no probe is answered."""

import asyncio
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Histogram

INTERVAL_SECONDS = 0.05
"""A stall is seen as its length less what remained of the interval."""

LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def event_loop_lag(registry: CollectorRegistry) -> Histogram:
    return Histogram(
        "onecard_event_loop_lag_seconds",
        "How late the event loop comes, asked twenty times a second; over 0.05 something holds everybody up.",
        registry=registry,
        buckets=LAG_BUCKETS,
    )


async def watch_lag(observe: Callable[[float], None], interval: float = INTERVAL_SECONDS) -> None:
    """Tell `observe`, every `interval`, how many seconds later than asked for the loop came; until
    cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + interval
        await asyncio.sleep(interval)
        observe(max(loop.time() - due, 0.0))
