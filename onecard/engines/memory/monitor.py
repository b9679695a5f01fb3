"""Looking at a card: what a monitor is, and the one of a CPU card."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import psutil

from onecard.engines.api import CardHealth
from onecard.engines.memory.card import host_memory

T = TypeVar("T")


class CardMonitor(Protocol):
    def sample(self) -> CardHealth:
        """Looks now, which may take milliseconds: not for a thread that somebody waits for. Never raises."""
        ...


class BlindMonitor:
    """Stands for a card that nobody can ask."""

    def sample(self) -> CardHealth:
        return CardHealth()


class HostMonitor:
    """The machine's memory within its control group, and its processors. Used by one thread."""

    def __init__(self) -> None:
        self._busy_before, self._all_before = reading(_processor_seconds) or (0.0, 0.0)

    def sample(self) -> CardHealth:
        available, total = reading(host_memory) or (None, None)
        return CardHealth(
            source="psutil",
            used_bytes=None if total is None or available is None else total - available,
            free_bytes=available,
            total_bytes=total,
            utilization=self._utilization(),
            own_bytes=reading(lambda: psutil.Process().memory_info().rss),
        )

    def _utilization(self) -> float | None:
        """Share of all cores that was busy since the last look."""
        seconds = reading(_processor_seconds)
        if seconds is None or seconds[1] <= self._all_before:
            return None
        share = (seconds[0] - self._busy_before) / (seconds[1] - self._all_before)
        self._busy_before, self._all_before = seconds
        return min(1.0, max(0.0, share))


def reading(ask: Callable[..., T], *args: Any) -> T | None:
    """What `ask` answers, None where it can't.

    Every exception counts as "can't": a driver has many ways to refuse, and no figure is worth a server.
    """
    try:
        return ask(*args)
    except Exception:
        return None


def _processor_seconds() -> tuple[float, float]:
    """Seconds (busy, all) of all cores since the machine started; a guest's are within its host's."""
    times = psutil.cpu_times()._asdict()
    everything = sum(times.values()) - times.get("guest", 0.0) - times.get("guest_nice", 0.0)
    return everything - times["idle"] - times.get("iowait", 0.0), everything
