"""A card's loop in simulated time: whose turn it is, a step of theirs, its end, what arrived meanwhile."""

from collections import deque
from collections.abc import Sequence

from onecard.engines.runtime.fair_share import FairShare
from simulator.engines import SimulatedEngine, StuckError
from simulator.workloads import Arrival


def simulate(
    engines: Sequence[SimulatedEngine], arrivals: Sequence[Arrival], quantum_seconds: float | None
) -> float:
    """Serves `arrivals`, in order of time, and returns when the last was done; the engines keep the records.

    `quantum_seconds` None: steps are as long as they like, and turns are still by fair share.
    """
    share = FairShare(quantum_seconds or 1.0)
    by_name = {engine.name: engine for engine in engines}
    for engine in engines:
        share.add(engine.name, engine.weight)
    waiting = deque(arrivals)
    now = 0.0
    while True:
        while waiting and waiting[0].time <= now:
            arrival = waiting.popleft()
            by_name[arrival.model].add(arrival)
        seconds = _step(share, by_name, now, bounded=quantum_seconds is not None)
        if seconds is not None:
            now += seconds
        elif waiting:
            now = max(now, waiting[0].time)
        elif any(engine.has_work() for engine in engines):
            raise StuckError(f"after {now:.1f} s: {[e.name for e in engines if e.has_work()]} can't go on")
        else:
            return now


def _step(share: FairShare, engines: dict[str, SimulatedEngine], now: float, bounded: bool) -> float | None:
    """Runs a step of the first engine, in order of fair share, that can run one; returns its seconds."""
    backlogged = {name: engine.priority() for name, engine in engines.items() if engine.has_work()}
    while (turn := share.pick(backlogged, now)) is not None:
        name, seconds = turn
        engine = engines[name]
        step = engine.launch(now, seconds if bounded else None)
        if step is not None:
            share.charge(name, step.seconds)
            engine.collect(step, now + step.seconds)
            return step.seconds
        del backlogged[name]
    return None
