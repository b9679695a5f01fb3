"""How a card is, as its driver tells it; for a CPU card, as the operating system does."""

from dataclasses import dataclass
from typing import Literal

ThrottleReason = Literal[
    "applications_clocks",
    "sw_power_cap",
    "hw_slowdown",
    "sync_boost",
    "sw_thermal_slowdown",
    "hw_thermal_slowdown",
    "hw_power_brake_slowdown",
    "display_clocks",
]
"""What keeps a GPU's clocks down. Idling does too, but nobody waits for an idle card."""


@dataclass(frozen=True)
class CardProcess:
    """A process that holds memory of a card. The name is its program's, without path or arguments."""

    pid: int
    name: str | None
    used_bytes: int | None


@dataclass(frozen=True)
class CardHealth:
    """One look at a card. None: the card doesn't tell.

    `utilization` is the share of the last moments in which anything ran, `memory_utilization` the share in
    which device memory was read or written, both 0..1. `ecc_uncorrected` counts since the driver was loaded.
    `own_bytes` is what this process holds; `foreign_processes` are all the others, None where the card's list
    doesn't have this process (its ids are of another namespace), so that nobody can tell ours from theirs.
    """

    source: Literal["nvml", "psutil", "none"] = "none"
    used_bytes: int | None = None
    free_bytes: int | None = None
    total_bytes: int | None = None
    utilization: float | None = None
    memory_utilization: float | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    throttle_reasons: tuple[ThrottleReason, ...] | None = None
    ecc_uncorrected: int | None = None
    processes: tuple[CardProcess, ...] | None = None
    own_bytes: int | None = None
    foreign_processes: tuple[CardProcess, ...] | None = None
