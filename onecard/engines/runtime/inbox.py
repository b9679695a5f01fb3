"""The two crossings between the event loop's thread and a device loop's thread."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable

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
    """Deliveries for the event loop: one wake-up for all of a step's."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop

    def send(self, deliveries: list[Delivery]) -> None:
        if deliveries and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_run_all, deliveries)


def _run_all(deliveries: list[Delivery]) -> None:
    for deliver in deliveries:
        deliver()
