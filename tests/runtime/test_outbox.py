"""Deliveries to the event loop: in order, and others get their turns in between."""

from collections.abc import Callable

import pytest

from onecard.engines.runtime import inbox
from onecard.engines.runtime.inbox import DELIVERY_SECONDS, Inbox, Outbox


class Turns:
    """An event loop driven by hand, on a clock that only deliveries turn."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ready: list[Callable[[], None]] = []

    def perf_counter(self) -> float:
        return self.now

    def is_closed(self) -> bool:
        return False

    def call_soon(self, call: Callable[[], None]) -> None:
        self.ready.append(call)

    call_soon_threadsafe = call_soon

    def turn(self) -> None:
        ready, self.ready = self.ready, []
        for call in ready:
            call()


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    turns = Turns()
    monkeypatch.setattr(inbox, "time", turns)
    return turns


def test_thousands_of_deliveries_leave_the_event_loop_its_turns_and_keep_their_order(turns: Turns) -> None:
    outbox, seen, longest = Outbox(turns), [], 0.0  # type: ignore[arg-type]

    def deliver(number: int) -> None:
        turns.now += 0.001
        seen.append(number)

    outbox.send([lambda i=i: deliver(i) for i in range(100)])
    outbox.send([lambda: deliver(100)])
    while turns.ready:
        began = turns.now
        turns.turn()
        longest = max(longest, turns.now - began)
    assert seen == list(range(101))
    assert longest <= 2 * (DELIVERY_SECONDS + 0.001), "one for each wake-up that came"


def test_a_delivery_that_raises_takes_nothing_from_the_others(turns: Turns) -> None:
    outbox, seen = Outbox(turns), []  # type: ignore[arg-type]

    def broken() -> None:
        raise ValueError

    outbox.send([broken, lambda: seen.append(1)])
    turns.turn()
    assert seen == [1]
    assert not turns.ready


def test_calls_come_one_by_one_in_order_and_wake_who_sleeps_while_any_is_left() -> None:
    box, seen = Inbox(), []
    assert not box.wait(0)
    for i in range(3):
        box.post(lambda i=i: seen.append(i))
    box.next()()  # type: ignore[misc]
    assert box.wait(0)
    assert not box.empty
    while (call := box.next()) is not None:
        call()
    assert seen == [0, 1, 2]
    assert box.empty
    assert not box.wait(0)
