"""The one thread that runs steps on one card.

    inbox -> pick an engine by fair share -> launch -> collect -> deliver -> inbox -> ...

Everything that the engines of a card own (schedulers, block pools, the page pool) is touched by this thread
alone, so none of it has locks. An idle loop sleeps on its inbox; it never spins.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from onecard.engines.runtime.fair_share import FairShare
from onecard.engines.runtime.inbox import Call, Delivery, Inbox, Outbox

logger = logging.getLogger(__name__)

BLOCKED_RETRY_SECONDS = 0.01
"""How long to wait for news when every engine that has work is waiting for memory."""

IDLE_SECONDS = 0.05
"""A pause this long counts as idle: time for integrity checks, which nobody should have to wait for."""


class StepEngine(Protocol):
    """What the loop needs of an engine. All of it runs on the device-loop thread."""

    name: str
    weight: float

    def has_work(self) -> bool: ...

    def launch(self) -> Any | None:
        """Schedule and enqueue one step. None: nothing can run now (it waits for memory, say)."""
        ...

    def collect(self, step: Any) -> list[Delivery]:
        """Wait for the step, update the engine's state, and return what its clients get."""
        ...

    def fail(self, error: BaseException) -> list[Delivery]:
        """A step raised: fail its requests, free all they held, be ready for the next step."""
        ...

    def idle(self) -> None:
        """The loop is about to sleep; check integrity."""
        ...


class DeviceLoop:
    def __init__(self, name: str, outbox: Outbox, on_thread_start: Callable[[], None] | None = None):
        self.name = name
        self._outbox = outbox
        self._on_thread_start = on_thread_start
        self._inbox = Inbox()
        self._engines: dict[str, StepEngine] = {}
        self._fair_share = FairShare()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"device-loop-{name}", daemon=True)

    def add_engine(self, engine: StepEngine) -> None:
        """Before `start`, or through `post`."""
        self._engines[engine.name] = engine
        self._fair_share.add(engine.name, engine.weight)

    def start(self) -> None:
        self._thread.start()

    def post(self, call: Call) -> None:
        """Run `call` on the loop's thread before its next step. Any thread may post."""
        self._inbox.post(call)

    def deliver(self, deliveries: list[Delivery]) -> None:
        """Hand results to the event loop outside of a step (an aborted request, say)."""
        self._outbox.send(deliveries)

    def is_idle(self) -> bool:
        """Nothing posted, nothing to run: an advisory look from another thread."""
        return self._inbox.empty and not any(engine.has_work() for engine in self._engines.values())

    def stop(self, timeout: float = 10.0) -> None:
        """Finish the current step and end the thread. Whatever still runs is dropped."""
        self._stopping = True
        self._inbox.post(lambda: None)
        self._thread.join(timeout)

    def _run(self) -> None:
        if self._on_thread_start is not None:
            self._on_thread_start()
        while not self._stopping:
            self._run_calls()
            backlogged = [name for name, engine in self._engines.items() if engine.has_work()]
            if not backlogged:
                self._sleep_until_posted()
            elif not self._step(backlogged):
                self._inbox.wait(BLOCKED_RETRY_SECONDS)

    def _run_calls(self) -> None:
        for call in self._inbox.take():
            try:
                call()
            except Exception:
                logger.exception("a call posted to device loop %s failed", self.name)

    def _sleep_until_posted(self) -> None:
        if self._inbox.wait(IDLE_SECONDS):
            return
        for engine in self._engines.values():
            try:
                engine.idle()
            except Exception:
                logger.exception("%s is not intact", engine.name)
        self._inbox.wait(None)

    def _step(self, backlogged: list[str]) -> bool:
        """Run one step of the first engine, in order of fair share, that can run one."""
        candidates = list(backlogged)
        while candidates:
            name = self._fair_share.pick(candidates)
            assert name is not None
            if self._step_engine(self._engines[name]):
                return True
            candidates.remove(name)
        return False

    def _step_engine(self, engine: StepEngine) -> bool:
        started = time.perf_counter()
        try:
            step = engine.launch()
            if step is None:
                return False
            deliveries = engine.collect(step)
        except Exception as error:
            logger.exception("a step of %s failed", engine.name)
            deliveries = self._fail(engine, error)
        self._fair_share.charge(engine.name, time.perf_counter() - started)
        self._outbox.send(deliveries)
        return True

    def _fail(self, engine: StepEngine, error: Exception) -> list[Delivery]:
        """An engine that can't even give up its requests is beyond help; the card's others still go on."""
        try:
            return engine.fail(error)
        except Exception:
            logger.critical("%s can't recover and is taken off the loop", engine.name, exc_info=True)
            del self._engines[engine.name]
            return []
