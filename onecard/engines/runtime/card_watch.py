"""Looks at a card once a second on a thread of its own, so that no step and no client waits for a driver."""

import logging
import threading

from onecard.engines.api import CardHealth
from onecard.engines.memory.monitor import CardMonitor
from onecard.registry.units import format_bytes as human

logger = logging.getLogger(__name__)

PERIOD_SECONDS = 1.0
LEDGER_SHARE = 0.1
LEDGER_BYTES = 512 << 20
"""A CUDA context and its libraries take a few hundred MiB that no ledger can know beforehand."""


_DISAGREE = (
    "%s: the ledger has %s (weights, arena, workspace), but NVML says this process holds %s: leave room for "
    "the difference in `memory:`, and report it with `onecard collect-env`"
)


def ledger_disagrees(planned: int, measured: int) -> bool:
    """Whether two figures of this process's bytes on a card differ by more than 10 % of the planned one and
    by more than 512 MiB."""
    return abs(planned - measured) > max(LEDGER_SHARE * planned, LEDGER_BYTES)


class CardWatch:
    """Keeps the latest look at a card, and says so when the ledger and the driver come to disagree.

    `planned_bytes`: weights, arena and workspace.
    """

    def __init__(self, card: str, monitor: CardMonitor, planned_bytes: int) -> None:
        self._card = card
        self._monitor = monitor
        self._planned = planned_bytes
        self._disagreed = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"card-watch-{card}", daemon=True)
        self.latest: CardHealth | None = None
        """None before the first look. Any thread may read it."""

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        self._stopping.set()
        self._thread.join(timeout)

    def look(self) -> None:
        """One round; the watch's thread calls it."""
        self.latest = self._monitor.sample()
        self._compare(self.latest)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.look()
            self._stopping.wait(PERIOD_SECONDS)

    def _compare(self, health: CardHealth) -> None:
        """A CPU card's resident bytes hold all of Python, and of the arena what was touched: no measure."""
        if health.source != "nvml" or health.own_bytes is None:
            return
        disagrees = ledger_disagrees(self._planned, health.own_bytes)
        if disagrees == self._disagreed:
            return
        self._disagreed = disagrees
        planned, measured = human(self._planned), human(health.own_bytes)
        if disagrees:
            logger.warning(_DISAGREE, self._card, planned, measured)
        else:
            logger.info("%s: the ledger (%s) and NVML (%s) agree again", self._card, planned, measured)
