"""What a device loop does about engines that fail, calls and deliveries that raise, and a lost card."""

import asyncio
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch

from onecard.engines.runtime.device_loop import MOST_FAILURES, DeviceLoop
from onecard.engines.runtime.fair_share import FairShare
from onecard.engines.runtime.inbox import Outbox
from onecard.engines.runtime.step_clock import HostStepClock

LOST = "CUDA error: device-side assert triggered"


class LateClock(HostStepClock):
    asynchronous = True


class ScriptedEngine:
    """Each step does what the script says: "ok", "launch" or "collect" (where it raises). Every step belongs
    to a request of its own; `log` gets what becomes of each, on the event loop's thread."""

    def __init__(self, name: str, script: Iterable[str] = (), weight: float = 1.0):
        self.name, self.weight = name, weight
        self.waiting = list(enumerate(script))
        self.in_flight: list[tuple[int, str]] = []
        self.suspect: int | None = None
        self.log: list[tuple[str, int]] = []
        self.error: Callable[[], BaseException] = partial(RuntimeError, "broken step")
        self.fails = True
        self.intact = True
        self.given_up: list[BaseException] = []
        self.most_in_flight = 0

    def add(self, number: int, does: str = "ok") -> None:
        self.waiting.append((number, does))

    def has_work(self) -> bool:
        return bool(self.waiting)

    def urgency(self) -> int:
        return 0

    def launch(self, seconds: float | None = None) -> Any:
        step = self.waiting.pop(0)
        self.suspect = step[0]
        if step[1] == "launch":
            raise self.error()
        self.in_flight.append(step)
        self.most_in_flight = max(self.most_in_flight, len(self.in_flight))
        return step

    def collect(self, step: Any) -> list:
        assert step == self.in_flight.pop(0)
        self.suspect = step[0]
        if step[1] == "collect":
            raise self.error()
        return [self._tell("answered", step[0])]

    def fail(self, error: BaseException) -> list:
        if not self.fails:
            raise RuntimeError("can't")
        assert self.suspect is not None
        return [self._tell("failed", self.suspect)]

    def give_up(self, error: BaseException) -> list:
        self.given_up.append(error)
        lost, self.waiting = self.waiting, []
        return [self._tell("given up", number) for number, _ in lost]

    def idle(self) -> None:
        if not self.intact:
            raise self.error()

    def _tell(self, what: str, number: int) -> Callable[[], None]:
        return partial(self._log, what, number)

    def _log(self, what: str, number: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.log.append((what, number))


class Loop:
    """A device loop, and what it told."""

    def __init__(self, *engines: ScriptedEngine, late: bool = False, **arguments: Any):
        self.failed: list[tuple[str, str]] = []
        self.fatal: list[BaseException] = []
        self.device = DeviceLoop(
            "card0",
            Outbox(asyncio.get_running_loop()),
            LateClock() if late else HostStepClock(),
            FairShare(0.1),
            on_engine_failed=lambda name, error: self.failed.append((name, str(error))),
            on_fatal=self.fatal.append,
            **arguments,
        )
        for engine in engines:
            self.device.add_engine(engine)
        self.device.start()

    async def on_loop(self, call: Callable[[], None]) -> None:
        done = asyncio.Event()
        self.device.post(call)
        self.device.post(lambda: self.device.deliver([done.set]))
        await asyncio.wait_for(done.wait(), 5)

    async def settled(self) -> None:
        await until(self.device.is_idle)
        await self.on_loop(lambda: None)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("waited 5 s in vain")


@pytest.fixture(params=[False, True], ids=["cpu", "late"])
def late(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.mark.parametrize("where", ["launch", "collect"])
async def test_an_engine_that_fails_again_and_again_is_taken_off_once(late, where):
    bad = ScriptedEngine("bad", ["ok", *[where] * MOST_FAILURES, "ok", "ok", "ok"])
    good = ScriptedEngine("good", ["ok"] * 20)
    loop = Loop(bad, good, late=late)
    await loop.settled()
    assert loop.failed == [("bad", "broken step")]
    assert len(bad.given_up) == 1
    fates = {number: what for what, number in bad.log}
    assert len(bad.log) == len(fates) == 7, "nobody is left out, nobody is told twice"
    assert [fates[i] for i in range(4)] == ["answered", "failed", "failed", "failed"]
    assert {fates[i] for i in range(4, 7)} <= {"given up", "answered"}
    assert [number for _, number in good.log] == list(range(20))
    assert not loop.fatal
    loop.device.stop()


async def test_a_step_that_succeeds_between_failures_is_a_fresh_start(late):
    script = ["launch", "launch", "ok", "collect", "collect", "ok", "ok", "launch", "collect", "ok"]
    engine = ScriptedEngine("a", script)
    loop = Loop(engine, late=late)
    await loop.settled()
    assert not loop.failed
    assert sorted(number for _, number in engine.log) == list(range(len(script)))
    loop.device.stop()


async def test_steps_in_flight_of_an_engine_that_was_taken_off_are_collected():
    engine = ScriptedEngine("a", ["collect", "collect", "collect", "collect", "ok"])
    loop = Loop(engine, late=True)
    await loop.settled()
    assert engine.most_in_flight == 2
    assert not engine.in_flight
    assert loop.failed == [("a", "broken step")]
    loop.device.stop()


async def test_a_request_on_its_way_to_an_engine_that_is_off_is_refused(late):
    engine = ScriptedEngine("a", ["launch"] * MOST_FAILURES)
    loop = Loop(engine, ScriptedEngine("b"), late=late)
    await loop.settled()
    loop.device.post(partial(engine.add, 77))
    await until(lambda: ("given up", 77) in engine.log)
    assert loop.failed == [("a", "broken step")], "told once"
    loop.device.stop()


async def test_an_engine_comes_back_under_its_name(late):
    engine = ScriptedEngine("a", ["launch"] * MOST_FAILURES)
    loop = Loop(engine, late=late)
    await loop.settled()
    await loop.on_loop(partial(loop.device.add_engine, engine))
    for number, does in enumerate(["launch", "launch", "ok", "ok"]):
        loop.device.post(partial(engine.add, 100 + number, does))
    await until(lambda: ("answered", 103) in engine.log)
    assert len(loop.failed) == 1, "the count starts anew"
    await loop.on_loop(partial(loop.device.remove_engine, "a"))
    other = ScriptedEngine("a", ["ok"])
    await loop.on_loop(partial(loop.device.add_engine, other))
    await until(lambda: other.log == [("answered", 0)])
    loop.device.stop()


async def test_two_engines_of_a_name_are_refused():
    loop = Loop(ScriptedEngine("a"))
    with pytest.raises(ValueError, match="a is on device loop card0 already"):
        loop.device.add_engine(ScriptedEngine("a"))
    loop.device.stop()


async def test_an_engine_that_cannot_even_fail_goes_the_same_way(late):
    bad, good = ScriptedEngine("bad", ["ok", "launch", "ok", "ok"]), ScriptedEngine("good", ["ok"] * 5)
    bad.fails = False
    loop = Loop(bad, good, late=late)
    await loop.settled()
    assert loop.failed == [("bad", "can't")]
    assert {("given up", 2), ("given up", 3)} <= set(bad.log)
    assert len(good.log) == 5
    loop.device.stop()


async def test_an_engine_that_raises_whatever_it_is_asked_harms_nobody(late, caplog):
    bad, good = ScriptedEngine("bad", ["launch", "ok"]), ScriptedEngine("good", ["ok"] * 5)
    bad.fails = False
    bad.give_up = lambda error: [][0]
    loop = Loop(bad, good, late=late)
    await until(lambda: len(good.log) == 5)
    await until(lambda: bool(loop.failed))
    assert "bad can't fail its requests" in caplog.text
    loop.device.stop()


async def test_an_engine_that_is_not_intact_when_idle_is_taken_off(late, caplog):
    bad, good = ScriptedEngine("bad", ["ok"]), ScriptedEngine("good")
    bad.intact = False
    loop = Loop(bad, good, late=late)
    await until(lambda: bool(loop.failed))
    assert loop.failed == [("bad", "broken step")]
    assert [r.levelname for r in caplog.records if "not intact" in r.message] == ["CRITICAL"]
    loop.device.post(partial(good.add, 1))
    loop.device.post(partial(bad.add, 2))
    await until(lambda: good.log == [("answered", 1)] and ("given up", 2) in bad.log)
    loop.device.stop()


@pytest.mark.parametrize("where", ["launch", "collect", "idle", "call", "fail", "start"])
async def test_a_lost_card_ends_everything(late, where):
    engine = ScriptedEngine("a", ["ok", where, "ok", "ok", "ok"] if where != "idle" else [])
    other = ScriptedEngine("b")
    error = torch.AcceleratorError(LOST)

    def lose() -> Any:
        raise error

    engine.error = lambda: error
    engine.intact = where != "idle"
    if where == "fail":
        engine.waiting = [(0, "launch")]
        engine.error = partial(RuntimeError, "a step's own trouble")
        engine.fail = lambda _: lose()
    loop = Loop(engine, other, late=late, on_thread_start=lose if where == "start" else None)
    if where == "call":
        loop.device.post(lose)
    await until(lambda: bool(loop.fatal))
    assert loop.fatal == [error]
    before = len(engine.waiting)
    loop.device.post(partial(other.add, 1))
    await asyncio.sleep(0.05)
    assert (len(engine.waiting), other.log) == (before, []), "no step is tried after that"
    assert not loop.failed
    loop.device.stop(1)


async def test_what_all_engines_share_is_checked_once_in_every_idle_moment(late):
    checks: list[int] = []
    engine = ScriptedEngine("a", ["ok"])
    loop = Loop(engine, late=late, on_idle=lambda: checks.append(len(engine.log)))
    await until(lambda: bool(checks))
    await asyncio.sleep(0.1)
    assert checks == [1]
    loop.device.post(partial(engine.add, 1))
    await until(lambda: len(checks) == 2)
    assert not loop.fatal
    loop.device.stop()


async def test_where_it_is_not_intact_no_engine_can_be_trusted(late):
    error = RuntimeError("two owners of a page")

    def check() -> None:
        raise error

    engine = ScriptedEngine("a")
    loop = Loop(engine, late=late, on_idle=check)
    await until(lambda: bool(loop.fatal))
    loop.device.post(partial(engine.add, 1))
    await asyncio.sleep(0.05)
    assert (loop.fatal, engine.log) == ([error], [])
    loop.device.stop(1)


async def test_the_loop_s_own_bug_is_no_silent_death():
    engine = ScriptedEngine("a", ["ok"])
    engine.urgency = lambda: 1 // 0
    loop = Loop(engine)
    await until(lambda: bool(loop.fatal))
    assert isinstance(loop.fatal[0], ZeroDivisionError)
    loop.device.stop(1)


async def test_a_delivery_that_raises_takes_nothing_from_the_others(caplog):
    got: list[int] = []
    outbox = Outbox(asyncio.get_running_loop())
    outbox.send([partial(got.append, 1), lambda: [][0], partial(got.append, 2)])
    await until(lambda: got == [1, 2])
    assert "a delivery to a client failed" in caplog.text


def test_deliveries_to_a_closed_event_loop_are_dropped():
    events = asyncio.new_event_loop()
    outbox = Outbox(events)
    events.close()
    outbox.send([lambda: None])

    class ClosesWhenAsked(asyncio.SelectorEventLoop):
        asked = 0

        def is_closed(self) -> bool:
            self.asked += 1
            return self.asked > 1 and super().is_closed()

    racing = ClosesWhenAsked()
    racing.close()
    racing.asked = 0
    Outbox(racing).send([lambda: None])
