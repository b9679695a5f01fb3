"""The two crossings between the event loop's thread and a device loop's thread."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable

logger = logging.getLogger(__name__)

Call = Callable[[], None]
Delivery = Callable[[], None]
"""Runs on the event loop's thread; hands a step's results to one client."""


class Inbox:
    """Calls for the device loop, posted by any thread, run by the device loop between two steps."""

    def __init__(self) -> None:
        self._calls: deque[Call] = deque()
        self._filled = threading.Event()

    def post(self, call: Call) -> None:
        self._calls.append(call)
        self._filled.set()

    def take(self) -> list[Call]:
        """Everything posted so far, in order. Never blocks."""
        self._filled.clear()
        calls = []
        while self._calls:
            calls.append(self._calls.popleft())
        return calls

    @property
    def empty(self) -> bool:
        return not self._calls

    def wait(self, timeout: float | None) -> bool:
        """Sleep until something is posted (True) or `timeout` seconds have passed (False)."""
        return self._filled.wait(timeout)


class Outbox:
    """Deliveries for the event loop: one wake-up for all of a step's. Once that loop is closed, nobody is
    there to get them."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop

    def send(self, deliveries: list[Delivery]) -> None:
        if not deliveries or self._loop.is_closed():
            return
        try:
            self._loop.call_soon_threadsafe(_run_all, deliveries)
        except RuntimeError:  # closed since it was asked
            if not self._loop.is_closed():
                raise


def _run_all(deliveries: list[Delivery]) -> None:
    """One that raises takes nothing from the others."""
    for deliver in deliveries:
        try:
            deliver()
        except Exception:
            logger.exception("a delivery to a client failed")
