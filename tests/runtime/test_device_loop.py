import asyncio
import threading
from functools import partial

import pytest

from onecard.engines.runtime.device_loop import DeviceLoop
from onecard.engines.runtime.fair_share import FairShare
from onecard.engines.runtime.inbox import Outbox
from onecard.engines.runtime.step_clock import HostStepClock, StepClock


class CountingEngine:
    """Counts down `left` steps; step number `broken` raises."""

    def __init__(
        self, name: str, received: list, left: int = 0, broken: int | None = None, weight: float = 1.0
    ):
        self.name, self.weight = name, weight
        self.left, self.broken, self.received = left, broken, received
        self.failures: list[BaseException] = []
        self.idles = threading.Event()
        self.threads: set[str] = set()
        self.blocked = False

    def has_work(self) -> bool:
        return self.left > 0

    def urgency(self) -> int:
        return 0

    def launch(self, seconds: float | None = None):
        self.threads.add(threading.current_thread().name)
        if self.blocked:
            return None
        self.left -= 1
        if self.left == self.broken:
            raise RuntimeError("broken step")
        return self.left

    def collect(self, step):
        return [partial(self.received.append, (self.name, step, threading.current_thread().name))]

    def fail(self, error):
        self.failures.append(error)
        return []

    def give_up(self, error):
        self.left = 0
        return []

    def idle(self):
        self.idles.set()


async def start(*engines: CountingEngine, clock: StepClock | None = None) -> DeviceLoop:
    loop = DeviceLoop("card0", Outbox(asyncio.get_running_loop()), clock or HostStepClock(), FairShare(0.1))
    for engine in engines:
        loop.add_engine(engine)
    loop.start()
    return loop


class LateClock(HostStepClock):
    """Of a card that computes on after a launch."""

    asynchronous = True


class LoggingEngine(CountingEngine):
    """Writes down the order of launches and collections."""

    def launch(self, seconds: float | None = None):
        step = super().launch(seconds)
        self.received.append(("launch", step))
        return step

    def collect(self, step):
        self.received.append(("collect", step))
        return []


async def test_on_an_asynchronous_card_a_step_is_launched_before_the_one_before_it_is_collected():
    log: list = []
    loop = await start(LoggingEngine("a", log, left=3), clock=LateClock())
    await until(lambda: len(log) == 6)
    assert log == [
        ("launch", 2),
        ("launch", 1),
        ("collect", 2),
        ("launch", 0),
        ("collect", 1),
        ("collect", 0),
    ]
    await until(loop.is_idle)
    loop.stop()


async def test_a_launch_that_fails_leaves_the_step_in_flight_to_be_collected():
    log: list = []
    engine = LoggingEngine("a", log, left=3, broken=1)
    loop = await start(engine, clock=LateClock())
    await until(lambda: ("collect", 0) in log)
    assert [str(error) for error in engine.failures] == ["broken step"]
    assert ("collect", 2) in log
    loop.stop()


async def until(condition) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("waited 5 s in vain")


async def test_steps_run_on_the_loops_thread_and_results_arrive_on_the_event_loop():
    received: list = []
    engine = CountingEngine("a", received, left=5)
    loop = await start(engine)
    await until(lambda: len(received) == 5)
    assert [step for _, step, _ in received] == [4, 3, 2, 1, 0]
    assert engine.threads == {"device-loop-card0"}
    loop.stop()


async def test_an_idle_loop_checks_integrity_and_sleeps_until_something_is_posted():
    received: list = []
    engine = CountingEngine("a", received)
    loop = await start(engine)
    await until(engine.idles.is_set)
    loop.post(lambda: setattr(engine, "left", 1))
    await until(lambda: len(received) == 1)
    assert loop.is_idle()
    loop.stop()


async def test_who_asks_is_told_once_an_engine_has_no_requests_and_all_posted_before_has_run():
    received: list = []
    engine = CountingEngine("a", received, left=5)
    loop = await start(engine)
    told: list[int] = []
    loop.post(lambda: setattr(engine, "left", engine.left + 3))
    loop.when_idle(engine.has_work, lambda: told.append(engine.left))
    await until(lambda: told)
    assert (told, len(received)) == ([0], 8)
    await until(loop.is_idle)
    loop.when_idle(engine.has_work, lambda: told.append(-1))
    await until(lambda: told == [0, -1])
    loop.post(lambda: setattr(engine, "left", 1))
    await until(lambda: len(received) == 9)
    assert told == [0, -1], "once each"
    loop.stop()


async def test_who_asks_while_another_engine_is_busy_is_told_all_the_same():
    """The question comes between two looks at those that were asked before."""
    engine, told = CountingEngine("a", [], left=50), asyncio.Event()
    loop = await start(engine)
    loop.when_idle(engine.has_work, lambda: None)
    loop.post(lambda: loop.when_idle(lambda: False, told.set))
    try:
        await asyncio.wait_for(told.wait(), 10)
    finally:
        loop.stop()


async def test_a_step_that_raises_is_handed_to_its_engine_and_the_others_go_on():
    received: list = []
    bad = CountingEngine("bad", received, left=3, broken=1)
    good = CountingEngine("good", received, left=3)
    loop = await start(bad, good)
    await until(lambda: len(received) == 5)
    assert [str(error) for error in bad.failures] == ["broken step"]
    assert sum(name == "good" for name, _, _ in received) == 3
    loop.stop()


async def test_a_blocked_engine_does_not_hold_up_another_and_retries():
    received: list = []
    blocked, free = CountingEngine("blocked", received, left=1), CountingEngine("free", received, left=3)
    blocked.blocked = True
    loop = await start(blocked, free)
    await until(lambda: len(received) == 3)
    loop.post(lambda: setattr(blocked, "blocked", False))
    await until(lambda: len(received) == 4)
    loop.stop()


async def test_a_posted_call_that_raises_does_not_end_the_loop():
    received: list = []
    engine = CountingEngine("a", received)
    loop = await start(engine)
    loop.post(lambda: 1 / 0)
    loop.post(lambda: setattr(engine, "left", 1))
    await until(lambda: len(received) == 1)
    loop.stop()


async def test_calls_run_in_the_order_they_were_posted():
    seen: list[int] = []
    loop = await start(CountingEngine("a", []))
    for i in range(200):
        loop.post(partial(seen.append, i))
    await until(lambda: len(seen) == 200)
    assert seen == list(range(200))
    loop.stop()


async def test_an_engine_that_cannot_recover_is_taken_off_and_the_others_go_on():
    received: list = []
    bad = CountingEngine("bad", received, left=3, broken=2)
    bad.fail = lambda error: 1 / 0
    good = CountingEngine("good", received, left=3)
    loop = await start(bad, good)
    await until(lambda: len(received) == 3)
    assert {name for name, _, _ in received} == {"good"}
    loop.stop()


class SlowEngine(CountingEngine):
    """Its queue is empty as soon as a step has taken from it; launching takes until `computed` is set."""

    def __init__(self, name: str, received: list, left: int):
        super().__init__(name, received, left)
        self.computing, self.computed = threading.Event(), threading.Event()
        self.slow = "launch"

    def launch(self, seconds: float | None = None):
        step = super().launch(seconds)
        self._compute("launch")
        return step

    def collect(self, step):
        self._compute("collect")
        return super().collect(step)

    def _compute(self, where: str) -> None:
        if where == self.slow:
            self.computing.set()
            assert self.computed.wait(5)


@pytest.mark.parametrize("slow", ["launch", "collect"])
async def test_a_loop_is_not_idle_while_a_step_is_computed_and_nothing_else_waits(slow):
    received: list = []
    engine = SlowEngine("a", received, left=1)
    engine.slow = slow
    loop = await start(engine, clock=LateClock())
    await until(engine.computing.is_set)
    assert not engine.has_work()
    assert not loop.is_idle()
    engine.computed.set()
    await until(loop.is_idle)
    assert len(received) == 1
    loop.stop()


async def test_a_loop_is_not_idle_while_a_call_runs():
    running, done = threading.Event(), threading.Event()

    def call() -> None:
        running.set()
        assert done.wait(5)

    loop = await start(CountingEngine("a", []))
    await until(loop.is_idle)
    loop.post(call)
    assert not loop.is_idle()
    await until(running.is_set)
    assert not loop.is_idle()
    done.set()
    await until(loop.is_idle)
    loop.stop()
