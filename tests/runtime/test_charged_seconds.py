"""Who pays for a card's time: on a clock that only engines and posted calls turn."""

import itertools
from collections.abc import Callable, Iterable
from itertools import cycle
from typing import Any

import pytest

from onecard.engines.runtime import device_loop
from onecard.engines.runtime.device_loop import DeviceLoop
from onecard.engines.runtime.fair_share import FairShare
from onecard.engines.runtime.inbox import Delivery
from onecard.engines.runtime.step_clock import HostStepClock

STEP = 0.005
END = 400 * STEP


class Time:
    """Takes the place of the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter


class LateClock(HostStepClock):
    asynchronous = True


class Nobody:
    def send(self, deliveries: list[Delivery]) -> None: ...


class Spender:
    """Has work until `END`. `script` says what becomes of each launch: "ok", "undone" or "raises"; all of
    them take `STEP`. `serial`: a step can't be launched before the last one has been read."""

    def __init__(
        self,
        name: str,
        time: Time,
        weight: float = 1.0,
        script: Iterable[str] = ("ok",),
        serial: bool = False,
    ):
        self.name, self.weight = name, weight
        self.time, self.script, self.serial = time, cycle(script), serial
        self.spent: list[float] = []
        """When each `STEP` was over."""
        self.in_flight = 0
        self.before_launch: Callable[[], None] = lambda: None

    def has_work(self) -> bool:
        return self.time.now < END

    def urgency(self) -> int:
        return 0

    def launch(self, seconds: float | None = None) -> Any | None:
        self.before_launch()
        if self.serial and self.in_flight:
            return None
        what = next(self.script)
        if what == "ok":
            self.in_flight += 1
            return what
        self._spend()
        if what == "raises":
            raise RuntimeError("broken step")
        return None

    def collect(self, step: Any) -> list[Delivery]:
        self.in_flight -= 1
        self._spend()
        return []

    def _spend(self) -> None:
        self.time.now += STEP
        self.spent.append(self.time.now)

    def fail(self, error: BaseException) -> list[Delivery]:
        return []

    give_up = fail

    def idle(self) -> None: ...


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(device_loop, "time", time)
    return time


def run(*engines: Spender, late: bool, call: Callable[[], None] | None = None) -> None:
    """Until `END`. `call`: what the first engine's 50th launch posts."""
    clock = LateClock() if late else HostStepClock()
    loop = DeviceLoop("card0", Nobody(), clock, FairShare(2 * STEP))  # type: ignore[arg-type]
    for engine in engines:
        loop.add_engine(engine)
    first = engines[0]
    if call is not None:
        first.before_launch = lambda: loop.post(call) if len(first.spent) == 50 else None
    loop.start()
    while not loop.is_idle():
        loop._thread.join(0.01)
    loop.stop()


def share_of(engine: Spender, other: Spender) -> float:
    return len(engine.spent) / (len(engine.spent) + len(other.spent))


@pytest.fixture(params=[False, True], ids=["cpu", "late"])
def late(request: pytest.FixtureRequest) -> bool:
    return request.param


def test_a_posted_call_is_charged_to_nobody(time, late):
    """It takes long, under a step in flight."""
    a, b = Spender("a", time), Spender("b", time)
    began: list[float] = []

    def call() -> None:
        if not began:
            time.now += 100 * STEP
            began.append(time.now)

    run(a, b, late=late, call=call)
    assert began
    after = [sum(began[0] < at <= began[0] + 20 * STEP for at in engine.spent) for engine in (a, b)]
    assert after[0] + after[1] == pytest.approx(20, abs=1)
    assert after[0] == pytest.approx(after[1], abs=2)


@pytest.mark.parametrize("script", [["undone", "ok"], ["raises", "ok"], ["undone", "raises", "ok"]])
def test_steps_that_come_to_nothing_are_charged_for_like_others(time, late, script):
    wasteful, good = Spender("wasteful", time, script=script), Spender("good", time, weight=4.0)
    run(wasteful, good, late=late)
    assert share_of(wasteful, good) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("weight", [1.0, 4.0])
def test_an_engine_that_reads_each_token_before_its_next_step_has_its_share(time, late, weight):
    """A sequence with penalties, beside a flood that always has a step to launch."""
    chat, flood = Spender("chat", time, weight, serial=True), Spender("flood", time)
    run(chat, flood, late=late)
    assert share_of(chat, flood) == pytest.approx(weight / (weight + 1), abs=0.02)


def test_thousands_of_posted_calls_hold_up_no_step(time, late):
    """As when a request of thousands of sequences is aborted: a few of its calls between two steps."""
    engine = Spender("a", time)
    ran: list[float] = []
    posted: list[int] = []

    def call() -> None:
        time.now += 0.001
        ran.append(time.now)

    def post_many() -> None:
        if not posted:
            posted.append(1)
            for _ in range(100):
                loop.post(call)

    loop = DeviceLoop("card0", Nobody(), LateClock() if late else HostStepClock(), FairShare(2 * STEP))
    loop.add_engine(engine)
    engine.before_launch = post_many
    loop.start()
    while not loop.is_idle():
        loop._thread.join(0.01)
    loop.stop()
    assert len(ran) == 100
    assert ran == sorted(ran)
    between = [sum(a < at <= b for at in ran) for a, b in itertools.pairwise(engine.spent)]
    assert max(between) <= 1 + round(device_loop.CALLS_SECONDS / 0.001)
    assert sum(count > 0 for count in between) >= 100 // max(between) - 1
