"""The watch over a card: its thread, and its word when ledger and driver disagree."""

import logging
import threading
import time
from collections.abc import Iterable

import pytest

from onecard.engines.api import CardHealth
from onecard.engines.runtime.card_watch import CardWatch, ledger_disagrees

MIB = 1 << 20
GIB = 1 << 30


class Monitor:
    """Says what the test wants, the last thing again and again."""

    def __init__(self, looks: Iterable[CardHealth]) -> None:
        self.looks = list(looks)
        self.threads: list[str] = []

    def sample(self) -> CardHealth:
        self.threads.append(threading.current_thread().name)
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]


def holding(*own_bytes: int | None) -> Monitor:
    return Monitor([CardHealth(source="nvml", own_bytes=nbytes) for nbytes in own_bytes])


@pytest.mark.parametrize(
    ("planned", "measured", "disagrees"),
    [
        (40 * GIB, 40 * GIB, False),
        (40 * GIB, 44 * GIB, False),  # 10 % exactly
        (40 * GIB, 44 * GIB + 1, True),
        (40 * GIB, 36 * GIB - 1, True),
        (GIB, GIB + 512 * MIB, False),  # 50 %, but a context's worth of bytes
        (GIB, GIB + 512 * MIB + 1, True),
        (0, 512 * MIB, False),
        (0, GIB, True),
    ],
)
def test_the_ledger_disagrees_by_share_and_by_bytes(planned: int, measured: int, disagrees: bool) -> None:
    assert ledger_disagrees(planned, measured) is disagrees


def test_a_disagreement_is_said_once_a_change(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    monitor = holding(40 * GIB, 46 * GIB, 47 * GIB, None, 47 * GIB, 41 * GIB, 41 * GIB, 30 * GIB)
    watch = CardWatch("card0", monitor, 40 * GIB)
    said = []
    for _ in range(8):
        caplog.clear()
        watch.look()
        said.append([(r.levelname, r.getMessage()) for r in caplog.records])
    assert [[level for level, _ in lines] for lines in said] == [
        [], ["WARNING"], [], [], [], ["INFO"], [], ["WARNING"],
    ]  # fmt: skip
    assert all(word in said[1][0][1] for word in ("card0", "40GiB", "46GiB"))


def test_resident_bytes_of_a_cpu_are_not_held_against_the_ledger(caplog: pytest.LogCaptureFixture) -> None:
    watch = CardWatch("card0", Monitor([CardHealth(source="psutil", own_bytes=GIB)]), 40 * GIB)
    watch.look()
    assert not caplog.records
    assert watch.latest == CardHealth(source="psutil", own_bytes=GIB)


def test_its_own_thread_looks_and_ends() -> None:
    monitor = holding(GIB)
    watch = CardWatch("lone", monitor, GIB)  # a node of other tests may watch its card0
    assert watch.latest is None
    watch.start()
    deadline = time.monotonic() + 10
    while watch.latest is None and time.monotonic() < deadline:
        time.sleep(0.001)
    watch.stop()
    assert watch.latest == CardHealth(source="nvml", own_bytes=GIB)
    assert set(monitor.threads) == {"card-watch-lone"}
    assert "card-watch-lone" not in [thread.name for thread in threading.enumerate()]


def test_it_looks_at_most_once_a_second() -> None:
    monitor = holding(GIB)
    watch = CardWatch("card0", monitor, GIB)
    watch.start()
    time.sleep(0.2)
    watch.stop()
    assert len(monitor.threads) == 1
