"""The crossings between the event loop's thread and others: a device loop's, and those beside a card's steps.

One of the latter ends with its work: one that lives on with a team of OpenMP workers makes every parallel
region of a CPU's device loop wait in the kernel instead of spinning (docs/performance.md, Threads).
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, TypeVar

from onecard.engines.api.aside import aside
from onecard.engines.runtime.failures import classify, end_process

logger = logging.getLogger(__name__)

Call = Callable[[], None]
Delivery = Callable[[], None]
"""Runs on the event loop's thread; hands a step's results to one client."""


DELIVERY_SECONDS = 0.01
"""Of the event loop at a stretch."""


class Inbox:
    """Calls for the device loop, posted by any thread, run by the device loop between two steps."""

    def __init__(self) -> None:
        self._calls: deque[Call] = deque()
        self._filled = threading.Event()

    def post(self, call: Call) -> None:
        self._calls.append(call)
        self._filled.set()

    def next(self) -> Call | None:
        """The oldest call, to be run now; None where there is none. Never blocks."""
        if not self._calls:
            self._filled.clear()
            if not self._calls:  # nor has one been posted since
                return None
        return self._calls.popleft()

    @property
    def empty(self) -> bool:
        return not self._calls

    def wait(self, timeout: float | None) -> bool:
        """Sleep until something is there (True) or `timeout` seconds have passed (False)."""
        return self._filled.wait(timeout)


class Outbox:
    """Deliveries for the event loop: one wake-up for all of a step's, in the order in which they are sent.

    Where they are many (thousands of answers that end at once) others get their turns in between. Once the
    loop is closed, nobody is there to get them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self._deliveries: deque[Delivery] = deque()

    def send(self, deliveries: list[Delivery]) -> None:
        if not deliveries or self._loop.is_closed():
            return
        self._deliveries.extend(deliveries)
        try:
            self._loop.call_soon_threadsafe(self._hand_over)
        except RuntimeError:  # closed since it was asked
            if not self._loop.is_closed():
                raise

    def _hand_over(self) -> None:
        """One that raises takes nothing from the others."""
        until = time.perf_counter() + DELIVERY_SECONDS
        while self._deliveries:
            try:
                self._deliveries.popleft()()
            except Exception:
                logger.exception("a delivery to a client failed")
            if time.perf_counter() > until and self._deliveries:
                self._loop.call_soon(self._hand_over)
                return


T = TypeVar("T")


class Poster(Protocol):
    """The part of a device loop that is needed here."""

    def post(self, call: Call) -> None: ...


async def run_on(loop: Poster, call: Callable[[], T]) -> T:
    """The result of `call`, run on a device loop's thread between two steps, also once nobody waits any more.
    An error that is fatal for the card ends the loop as well."""
    result: Future[T] = Future()

    def run() -> None:
        awaited = result.set_running_or_notify_cancel()
        try:
            value = call()
        except BaseException as error:
            if awaited:
                result.set_exception(error)
            if classify(error) == "fatal" or not awaited:
                raise
        else:
            if awaited:
                result.set_result(value)

    loop.post(run)
    return await asyncio.wrap_future(result)


async def run_aside(work: Callable[[], T]) -> T:
    """As `api.aside.aside`. An error that is fatal for a card ends the process, as it would on the card's
    loop."""

    def run() -> T:
        try:
            return work()
        except Exception as error:
            if classify(error) == "fatal":
                end_process(error)
            raise

    return await aside(run)
