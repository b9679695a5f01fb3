"""What the server's process holds, over time."""

import asyncio
from collections.abc import Sequence
from statistics import median
from typing import Any

import psutil

MOST_GROWTH = 0.05
"""Of what is held with all models unloaded: the last fifth of the looks beside the first."""


FEWEST_LOOKS = 10


class MemoryWatch:
    """Resident memory of a process in bytes: all along, and each time that no model was loaded.

    The former goes up and down with the models that are awake, and so tells the order of things; the latter
    is the same every time, unless something leaks.
    """

    def __init__(self, pid: int) -> None:
        self.all_along: list[int] = []
        self.unloaded: list[int] = []
        self._process = psutil.Process(pid)

    async def run(self, seconds: float) -> None:
        """A look every `seconds`, until cancelled."""
        while True:
            await asyncio.sleep(seconds)
            self.all_along.append(self._process.memory_info().rss)

    def look_unloaded(self) -> None:
        self.unloaded.append(self._process.memory_info().rss)

    def figures(self) -> dict[str, Any]:
        return {
            "all_along": _ends(self.all_along),
            "unloaded": _ends(self.unloaded),
            "unloaded_growth": round(self.growth, 4),
            "bound": MOST_GROWTH,
        }

    @property
    def growth(self) -> float:
        """0 after a run too short to tell."""
        if len(self.unloaded) < FEWEST_LOOKS:
            return 0.0
        first, last = _medians(self.unloaded)
        return last / first - 1


def _ends(values: Sequence[int]) -> dict[str, float]:
    """MiB: medians of the first and the last fifth, and the most there was."""
    if not values:
        return {"looks": 0}
    first, last = _medians(values)
    ends = {"first_fifth_mib": first, "last_fifth_mib": last, "most_mib": max(values)}
    return {"looks": len(values), **{name: round(value / 2**20, 1) for name, value in ends.items()}}


def _medians(values: Sequence[int]) -> tuple[float, float]:
    fifth = max(1, len(values) // 5)
    return median(values[:fifth]), median(values[-fifth:])
