"""The one thread that runs steps on one card.

    inbox -> pick an engine by fair share -> launch its step -> collect the one before -> deliver -> ...

On a GPU a step is launched before the one before it is collected, so the card computes while the host reads
tokens and prepares; on a CPU, where launching is computing, each step is collected at once. Everything that
the engines of a card own (schedulers, block pools, the page pool) is touched by this thread alone, so none of
it has locks; and all steps run on one stream, in order, so memory may change hands while one is in flight. An
idle loop sleeps on its inbox; it never spins.

Time is charged once: to the engine whose step took it, whether that came to something or not. What posted
calls take is nobody's.

A step that raises fails its own requests. An engine that does nothing else is taken off, and the others go
on; where the card itself is lost, so is the process.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from onecard.engines.runtime.failures import classify, end_process
from onecard.engines.runtime.fair_share import FairShare
from onecard.engines.runtime.inbox import Call, Delivery, Inbox, Outbox
from onecard.engines.runtime.step_clock import StepClock
from onecard.engines.runtime.step_engine import StepEngine

logger = logging.getLogger(__name__)

BLOCKED_RETRY_SECONDS = 0.01
"""How long to wait for news when every engine that has work is waiting for memory."""

IDLE_SECONDS = 0.05
"""A pause this long counts as idle: time for integrity checks, which nobody should have to wait for."""

CALLS_SECONDS = 0.005
"""For posted calls between two steps; one that takes longer is the last."""

MOST_FAILURES = 3
"""An engine is taken off after so many failed steps with none between them that succeeded."""

EngineFailed = Callable[[str, BaseException], None]
"""Told on the event loop's thread that this engine was taken off its loop, and what it died of."""


@dataclass
class _InFlight:
    """A launched step of an engine; `estimate` seconds were charged for it beforehand."""

    engine: StepEngine
    step: Any
    launched: float
    estimate: float


class DeviceLoop:
    """`on_engine_failed` hears of each engine that is taken off because it fails. `on_fatal` is called on the
    loop's thread once nothing more can be run, and isn't expected to return. `on_idle` checks what all
    engines share, once in every idle moment; where it raises nothing more can be run either."""

    def __init__(
        self,
        name: str,
        outbox: Outbox,
        clock: StepClock,
        fair_share: FairShare,
        on_thread_start: Callable[[], None] | None = None,
        on_engine_failed: EngineFailed | None = None,
        on_fatal: Callable[[BaseException], None] = end_process,
        on_idle: Callable[[], None] | None = None,
    ):
        self.name = name
        self._outbox = outbox
        self._clock = clock
        self._on_thread_start = on_thread_start
        self._on_engine_failed = on_engine_failed
        self._on_fatal = on_fatal
        self._on_idle = on_idle
        self._inbox = Inbox()
        self._engines: dict[str, StepEngine] = {}
        self._failures: Counter[str] = Counter()
        """Steps of each engine that have failed since one succeeded."""
        self._dead: dict[str, tuple[StepEngine, BaseException]] = {}
        """Engines that were taken off because they failed, and of what."""
        self._fair_share = fair_share
        self._in_flight: deque[_InFlight] = deque()
        self._most_in_flight = 1 if clock.asynchronous else 0
        self._step_seconds: dict[str, float] = {}
        """What each engine's last step took."""
        self._charged_until = 0.0
        """Up to here the loop's time has been charged, or is nobody's."""
        self._watched: list[tuple[Callable[[], bool], Delivery]] = []
        """Whether an engine has requests, and who is told once it has none."""
        self._at_rest = False
        """All that was posted or launched is done with."""
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"device-loop-{name}", daemon=True)

    def add_engine(self, engine: StepEngine) -> None:
        """Before `start`, or through `post`. The name may be that of an engine that was taken off."""
        if engine.name in self._engines:
            raise ValueError(f"{engine.name} is on device loop {self.name} already")
        self._dead.pop(engine.name, None)
        self._engines[engine.name] = engine
        self._fair_share.add(engine.name, engine.weight)

    def remove_engine(self, name: str) -> None:
        """Through `post`. An engine with requests must have them failed or finished by whoever removes it;
        its steps in flight are still collected. One that isn't there is nobody's concern."""
        self._dead.pop(name, None)
        if self._engines.pop(name, None) is not None:
            self._fair_share.remove(name)
            self._failures.pop(name, None)
            self._step_seconds.pop(name, None)

    def start(self) -> None:
        self._thread.start()

    def post(self, call: Call) -> None:
        """Run `call` on the loop's thread before its next step, in the order of posting; some steps later
        where much was posted before. Any thread may post."""
        self._inbox.post(call)

    def when_idle(self, has_requests: Callable[[], bool], tell: Delivery) -> None:
        """`tell` runs on the event loop once an engine has no requests between two steps, and after all that
        was posted before. Any thread may ask."""
        self._inbox.post(lambda: self._watched.append((has_requests, tell)))  # the list that is there by then

    def deliver(self, deliveries: list[Delivery]) -> None:
        """Hand results to the event loop outside of a step (an aborted request, say)."""
        self._outbox.send(deliveries)

    def is_idle(self) -> bool:
        """Nothing is posted, runs or waits, and all results are handed over. Any thread may ask."""
        # Asked in this order: the loop leaves its rest before it takes what was posted.
        return self._inbox.empty and self._at_rest

    def stop(self, timeout: float = 10.0) -> None:
        """Finish the current step and end the thread. Whatever still runs is dropped."""
        self._stopping = True
        self._inbox.post(lambda: None)
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            if self._on_thread_start is not None:
                self._on_thread_start()
            self._serve()
        except Exception as error:
            self._stopping = True
            self._on_fatal(error)

    def _serve(self) -> None:
        while not self._stopping:
            self._at_rest = False
            self._run_calls()
            self._refuse_late_requests()
            if self._watched:
                self._tell_of_idle_engines()
            backlogged = {name: e.urgency() for name, e in self._engines.items() if e.has_work()}
            launched = self._launch(backlogged)
            if self._in_flight and (not launched or len(self._in_flight) > self._most_in_flight):
                self._collect(self._in_flight.popleft())
            elif not launched and backlogged:
                self._inbox.wait(BLOCKED_RETRY_SECONDS)
            elif not launched:
                self._sleep_until_posted()

    def _run_calls(self) -> None:
        """What was posted, or the first of it where it is much: thousands of requests, or their ends, mustn't
        hold up the steps of those who run."""
        until = time.perf_counter() + CALLS_SECONDS
        while self._charged_until <= until and (call := self._inbox.next()) is not None:
            try:
                call()
            except Exception as error:
                _raise_fatal(error)
                logger.exception("a call posted to device loop %s failed", self.name)
            self._charged_until = time.perf_counter()

    def _refuse_late_requests(self) -> None:
        """Those that were on their way to an engine when it was taken off."""
        for engine, error in self._dead.values():
            if engine.has_work():
                self._outbox.send(self._give_up(engine, error))

    def _tell_of_idle_engines(self) -> None:
        watched, self._watched = self._watched, []
        idle: list[Delivery] = []
        for has_requests, tell in watched:
            if has_requests():
                self._watched.append((has_requests, tell))
            else:
                idle.append(tell)
        self._outbox.send(idle)

    def _sleep_until_posted(self) -> None:
        self._clock.rest()
        self._at_rest = True
        if self._inbox.wait(IDLE_SECONDS):
            return
        for engine in list(self._engines.values()):
            try:
                engine.idle()
            except Exception as error:
                _raise_fatal(error)
                logger.critical("%s is not intact and is taken off the loop", engine.name, exc_info=True)
                self._outbox.send(self._take_off(engine, error))
        if self._on_idle is not None:
            self._on_idle()
        self._inbox.wait(None)

    def _launch(self, backlogged: dict[str, int]) -> bool:
        """Launch a step of the first engine, in order of fair share, that can run one.

        An engine whose next step hangs on its step in flight keeps its turn until that one has been read.
        """
        candidates = dict(backlogged)
        while (turn := self._fair_share.pick(candidates, time.monotonic())) is not None:
            name, seconds = turn
            engine = self._engines[name]
            if self._launch_engine(engine, seconds):
                return True
            if any(flying.engine is engine for flying in self._in_flight):
                return False
            del candidates[name]
        return False

    def _launch_engine(self, engine: StepEngine, seconds: float | None) -> bool:
        """True if a step is in flight now that wasn't, or if trying has failed the engine's requests."""
        launched = time.perf_counter()
        try:
            step = engine.launch(seconds)
        except Exception as error:
            self._outbox.send(self._fail(engine, error))
            self._charge(engine, launched)
            return True
        if step is None:
            self._charge(engine, launched)
            return False
        estimate = self._step_seconds.get(engine.name, 0.0)
        self._fair_share.charge(engine.name, estimate)
        self._in_flight.append(_InFlight(engine, step, launched, estimate))
        return True

    def _collect(self, flying: _InFlight) -> None:
        engine = flying.engine
        try:
            deliveries = engine.collect(flying.step)
            self._failures.pop(engine.name, None)
        except Exception as error:
            deliveries = self._fail(engine, error)
        # Steps run one after another: this one began when the one before it had ended, if not later.
        self._charge(engine, flying.launched, flying.estimate)
        self._outbox.send(deliveries)

    def _charge(self, engine: StepEngine, since: float, estimate: float | None = None) -> None:
        """For the time from `since` until now that nobody has been charged for. `estimate`: what was charged
        for it beforehand, where it is a step's."""
        now = time.perf_counter()
        seconds = now - max(since, self._charged_until)
        self._charged_until = now
        if self._engines.get(engine.name) is not engine:
            return
        self._fair_share.charge(engine.name, seconds - (estimate or 0.0))
        if estimate is not None:
            self._step_seconds[engine.name] = seconds

    def _fail(self, engine: StepEngine, error: Exception) -> list[Delivery]:
        """A step of `engine` has raised. One that fails on and on, or can't even give up the requests of a
        step, is beyond help; the card's others still go on."""
        _raise_fatal(error)
        logger.error("a step of %s failed", engine.name, exc_info=error)
        if self._engines.get(engine.name) is not engine:
            return []
        try:
            deliveries = engine.fail(error)
        except Exception as worse:
            _raise_fatal(worse)
            logger.critical("%s can't recover and is taken off the loop", engine.name, exc_info=True)
            return self._take_off(engine, worse)
        self._failures[engine.name] += 1
        if self._failures[engine.name] < MOST_FAILURES:
            return deliveries
        logger.critical("%s is taken off the loop: %d steps in a row have failed", engine.name, MOST_FAILURES)
        return [*deliveries, *self._take_off(engine, error)]

    def _take_off(self, engine: StepEngine, error: Exception) -> list[Delivery]:
        """The error is kept without the frames it came through: they would hold on to a step's memory."""
        error = error.with_traceback(None)
        self.remove_engine(engine.name)
        self._dead[engine.name] = (engine, error)
        told = [] if self._on_engine_failed is None else [partial(self._on_engine_failed, engine.name, error)]
        return [*told, *self._give_up(engine, error)]

    def _give_up(self, engine: StepEngine, error: BaseException) -> list[Delivery]:
        try:
            return engine.give_up(error)
        except Exception as worse:
            _raise_fatal(worse)
            logger.critical("%s can't fail its requests", engine.name, exc_info=True)
            return []


def _raise_fatal(error: Exception) -> None:
    """Nothing more can be run on the card after such an error: it ends the loop."""
    if classify(error) == "fatal":
        raise error
