"""Gauges of the cards themselves, as a monitor saw them last. What a card doesn't tell has no sample.

The names say gpu for CPU cards too (theirs are the operating system's figures), so that one board shows both.
"""

from collections.abc import Callable, Iterable
from typing import get_args

from prometheus_client.core import Metric

from onecard.engines.api import CardHealth, CardStatus, ThrottleReason
from onecard.gateway.metrics.families import Samples, counter_of, gauge_of

Seen = list[tuple[str, CardHealth]]

READINGS: tuple[tuple[str, str, Callable[[CardHealth], float | None]], ...] = (
    ("memory_used_bytes", "Memory of the card in use, by whomever.", lambda h: h.used_bytes),
    ("memory_total_bytes", "Memory of the card.", lambda h: h.total_bytes),
    (
        "utilization",
        "Share of the last moments in which the card ran anything, 0..1.",
        lambda h: h.utilization,
    ),
    ("temperature_celsius", "Temperature of the card.", lambda h: h.temperature_c),
    ("power_watts", "Power that the card draws.", lambda h: h.power_w),
)
"""Name after `onecard_gpu_`, help, and where to read it, of the gauges with one sample a card."""


def health_families(cards: Iterable[CardStatus]) -> list[Metric]:
    seen = [(card.name, card.health) for card in cards if card.health is not None]
    return [
        *(_reading(*of, seen) for of in READINGS),
        gauge_of("onecard_gpu_clock_mhz", "Clock of the SMs, of memory.", ("card", "clock"), _clocks(seen)),
        gauge_of(
            "onecard_gpu_throttled",
            "1 for what keeps the card's clocks down.",
            ("card", "reason"),
            (
                ((card, reason), float(reason in health.throttle_reasons))
                for card, health in seen
                if health.throttle_reasons is not None
                for reason in get_args(ThrottleReason)
            ),
        ),
        counter_of(
            "onecard_gpu_ecc_errors",
            "Uncorrected memory errors since the driver was loaded.",
            ("card",),
            (
                ((card,), health.ecc_uncorrected)
                for card, health in seen
                if health.ecc_uncorrected is not None
            ),
        ),
        gauge_of(
            "onecard_gpu_process_bytes",
            "Memory of the card by process.",
            ("card", "pid", "name"),
            (
                ((card, str(process.pid), process.name or ""), process.used_bytes)
                for card, health in seen
                for process in health.processes or ()
                if process.used_bytes is not None
            ),
        ),
    ]


def _reading(name: str, text: str, read: Callable[[CardHealth], float | None], seen: Seen) -> Metric:
    values = ((card, read(health)) for card, health in seen)
    samples = (((card,), value) for card, value in values if value is not None)
    return gauge_of(f"onecard_gpu_{name}", text, ("card",), samples)


def _clocks(seen: Seen) -> Samples:
    for card, health in seen:
        for clock, mhz in (("sm", health.sm_clock_mhz), ("memory", health.memory_clock_mhz)):
            if mhz is not None:
                yield (card, clock), mhz
