"""The one thread that runs steps on one card.

    inbox -> pick an engine by fair share -> launch its step -> collect the one before -> deliver -> ...

On a GPU a step is launched before the one before it is collected, so the card computes while the host reads
tokens and prepares; on a CPU, where launching is computing, each step is collected at once. Everything that
the engines of a card own (schedulers, block pools, the page pool) is touched by this thread alone, so none of
it has locks; and all steps run on one stream, in order, so memory may change hands while one is in flight. An
idle loop sleeps on its inbox; it never spins.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from onecard.engines.runtime.fair_share import FairShare
from onecard.engines.runtime.inbox import Call, Delivery, Inbox, Outbox
from onecard.engines.runtime.step_clock import StepClock

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

    def urgency(self) -> int:
        """The priority of its most urgent request (smaller: more urgent); asked only where there is work."""
        ...

    def launch(self, seconds: float | None = None) -> Any | None:
        """Schedule and enqueue one step, of no more than about `seconds`; None: as large as it may be.

        Returns None where nothing can run now (it waits for memory, say).
        """
        ...

    def collect(self, step: Any) -> list[Delivery]:
        """Wait for the step, update the engine's state, and return what its clients get.

        Steps are collected in order; another one may have been launched meanwhile.
        """
        ...

    def fail(self, error: BaseException) -> list[Delivery]:
        """A step raised: fail its requests, free all they held, be ready for the next step."""
        ...

    def idle(self) -> None:
        """The loop is about to sleep; check integrity."""
        ...


@dataclass
class _InFlight:
    """A launched step of an engine; `estimate` seconds were charged for it beforehand."""

    engine: StepEngine
    step: Any
    launched: float
    estimate: float


class DeviceLoop:
    def __init__(
        self,
        name: str,
        outbox: Outbox,
        clock: StepClock,
        fair_share: FairShare,
        on_thread_start: Callable[[], None] | None = None,
    ):
        self.name = name
        self._outbox = outbox
        self._clock = clock
        self._on_thread_start = on_thread_start
        self._inbox = Inbox()
        self._engines: dict[str, StepEngine] = {}
        self._fair_share = fair_share
        self._in_flight: deque[_InFlight] = deque()
        self._most_in_flight = 1 if clock.asynchronous else 0
        self._step_seconds: dict[str, float] = {}
        """What each engine's last step took."""
        self._last_collected = 0.0
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
        busy = any(engine.has_work() for engine in self._engines.values())
        return self._inbox.empty and not self._in_flight and not busy

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
            backlogged = {name: e.urgency() for name, e in self._engines.items() if e.has_work()}
            launched = self._launch(backlogged)
            if self._in_flight and (not launched or len(self._in_flight) > self._most_in_flight):
                self._collect(self._in_flight.popleft())
            elif not launched and backlogged:
                self._inbox.wait(BLOCKED_RETRY_SECONDS)
            elif not launched:
                self._sleep_until_posted()

    def _run_calls(self) -> None:
        for call in self._inbox.take():
            try:
                call()
            except Exception:
                logger.exception("a call posted to device loop %s failed", self.name)

    def _sleep_until_posted(self) -> None:
        self._clock.rest()
        if self._inbox.wait(IDLE_SECONDS):
            return
        for engine in self._engines.values():
            try:
                engine.idle()
            except Exception:
                logger.exception("%s is not intact", engine.name)
        self._inbox.wait(None)

    def _launch(self, backlogged: dict[str, int]) -> bool:
        """Launch a step of the first engine, in order of fair share, that can run one."""
        candidates = dict(backlogged)
        while (turn := self._fair_share.pick(candidates, time.monotonic())) is not None:
            if self._launch_engine(self._engines[turn.name], turn.seconds):
                return True
            del candidates[turn.name]
        return False

    def _launch_engine(self, engine: StepEngine, seconds: float | None) -> bool:
        """True if a step is in flight now that wasn't, or if trying has failed the engine's requests."""
        launched = time.perf_counter()
        try:
            step = engine.launch(seconds)
        except Exception as error:
            logger.exception("a step of %s failed", engine.name)
            self._outbox.send(self._fail(engine, error))
            return True
        if step is None:
            return False
        estimate = self._step_seconds.get(engine.name, 0.0)
        self._fair_share.charge(engine.name, estimate)
        self._in_flight.append(_InFlight(engine, step, launched, estimate))
        return True

    def _collect(self, flying: _InFlight) -> None:
        engine = flying.engine
        try:
            deliveries = engine.collect(flying.step)
        except Exception as error:
            logger.exception("a step of %s failed", engine.name)
            deliveries = self._fail(engine, error)
        now = time.perf_counter()
        # Steps run one after another: this one began when the one before it had ended, if not later.
        seconds = now - max(flying.launched, self._last_collected)
        self._last_collected = now
        if engine.name in self._engines:
            self._fair_share.charge(engine.name, seconds - flying.estimate)
            self._step_seconds[engine.name] = seconds
        self._outbox.send(deliveries)

    def _fail(self, engine: StepEngine, error: Exception) -> list[Delivery]:
        """An engine that can't even give up its requests is beyond help; the card's others still go on."""
        try:
            return engine.fail(error)
        except Exception:
            logger.critical("%s can't recover and is taken off the loop", engine.name, exc_info=True)
            del self._engines[engine.name]
            return []
