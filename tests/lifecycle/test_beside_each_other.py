"""Models of one card that come and go at the same time: who waits for whom, and whose books hold."""

import asyncio
from collections.abc import Callable, Generator
from typing import Any

import pytest
from manager_helpers import Loop, SmallCard

from onecard.engines.api import ModelUnavailableError
from onecard.engines.lifecycle import manager
from onecard.engines.lifecycle.weight_mover import BrokenModelError
from onecard.engines.node.replacement import renew, resize, retire


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is in the way may take requests for a moment only: what waited for it gets in."""
    monkeypatch.setattr(manager, "PATIENCE_SECONDS", 0.05)


def wants(card: SmallCard, name: str) -> "asyncio.Task[None]":
    """A request for the model."""
    return asyncio.create_task(card[name].gate.enter())


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.001)


async def settle(card: SmallCard) -> None:
    await until(lambda: card.manager.is_quiet)
    card.manager.pool.check_integrity()


# --- who waits for whom ----------------------------------------------------------------------------------


async def test_requests_that_an_operators_sleep_waits_for_keep_no_other_model():
    card = SmallCard(a=range(2), b=range(2, 4))
    card["a"].hooks.busy = True
    sleep = asyncio.create_task(card.manager.sleep("a", 1))
    await until(lambda: not card["a"].awake)
    async with asyncio.timeout(5):
        await wants(card, "b")
    assert not sleep.done()
    back = wants(card, "a")  # it sleeps first, and comes back for this one
    card["a"].hooks.busy = False
    await sleep
    await back
    assert card.states == {"a": "ready", "b": "ready"}
    assert card["a"].weights.loaded == 1
    await settle(card)


@pytest.mark.usefixtures("impatient")
async def test_who_needs_nobodys_room_passes_one_that_waits_for_some():
    card = SmallCard(a=range(2), b=range(2), c=range(2, 4))
    card["a"].hooks.busy = True
    first = wants(card, "b")
    await until(lambda: not card["a"].awake)
    async with asyncio.timeout(5):
        await wants(card, "c")
    assert card.states == {"a": "asleep", "b": "waking", "c": "ready"}
    card["a"].hooks.busy = False
    await first
    assert card.states == {"a": "asleep", "b": "ready", "c": "ready"}
    await settle(card)


@pytest.mark.usefixtures("impatient")
async def test_who_would_be_in_the_way_of_whose_turn_it_is_waits_for_its_own():
    card = SmallCard(a=range(2), b=range(4), c=range(2, 4))
    card["a"].hooks.busy = True
    first = wants(card, "b")
    await until(lambda: not card["a"].awake)
    second = wants(card, "c")
    await asyncio.sleep(0.05)
    assert not card.manager.pool.has_home("c"), "its place is free, but not for long"
    card["a"].hooks.busy = False
    await first
    await second
    assert card.states == {"a": "asleep", "b": "asleep", "c": "ready"}
    assert (card["b"].weights.loaded, card["c"].weights.loaded) == (1, 1)
    await settle(card)


async def test_two_that_fit_alone_but_not_together_dont_come_together():
    card = SmallCard(a=range(0), b=range(3), c=range(1, 4))
    together = False

    async def watch() -> None:
        nonlocal together
        while True:
            together |= {"b", "c"} <= card.manager.pool._homes.keys()
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    await asyncio.gather(wants(card, "b"), wants(card, "c"))
    watching.cancel()
    assert not together
    assert sorted(card.states.values()) == ["asleep", "ready", "ready"]
    await settle(card)


@pytest.mark.usefixtures("impatient")
async def test_an_operator_and_a_wake_that_want_the_same_model_to_sleep_share_it():
    card = SmallCard("a", "b")
    card["a"].hooks.busy = True
    sleep = asyncio.create_task(card.manager.sleep("a", 2))
    left = wants(card, "b")
    await until(lambda: card.states["b"] == "waking")
    left.cancel()
    await asyncio.sleep(0.05)
    assert card.states == {"a": "unloaded", "b": "unloaded"}, "the operator still wants it"
    card["a"].hooks.busy = False
    await sleep
    assert card.states == {"a": "unloaded", "b": "unloaded"}
    assert not card.manager.pool.has_home("a")
    await settle(card)


@pytest.mark.usefixtures("impatient")
async def test_a_copy_is_dropped_only_once_the_model_has_left():
    card = SmallCard("a", "b")
    card["a"].hooks.busy = True
    wanted = wants(card, "b")
    await until(lambda: not card["a"].awake)
    deeper = asyncio.create_task(card.manager.sleep("a", 2))
    await asyncio.sleep(0.05)
    assert card["a"].weights.model is not None, "its requests run on it"
    card["a"].hooks.busy = False
    await deeper
    await wanted
    assert card.states == {"a": "unloaded", "b": "ready"}
    await settle(card)


@pytest.mark.usefixtures("impatient")
async def test_a_larger_floor_makes_room_beside_whatever_else_goes_on():
    card = SmallCard(a=range(1), b=range(1, 2), c=range(2, 4))
    await wants(card, "b")
    card["b"].hooks.busy = True
    growing = asyncio.create_task(resize(card.manager, card["a"], 3, 4))
    await until(lambda: not card["b"].awake)
    assert not growing.done()
    card["b"].hooks.busy = False
    await growing
    assert card.states == {"a": "ready", "b": "asleep", "c": "unloaded"}
    await settle(card)


async def test_a_larger_floor_finds_the_model_awake_that_slept_when_it_was_asked_for():
    card = SmallCard(a=range(1), b=range(1, 2))
    async with card.manager.still():
        growing = asyncio.create_task(resize(card.manager, card["b"], 3, 4))
        await asyncio.sleep(0.01)
        assert card.manager.pool.claim_home("b", card["b"].weights.home)  # its wake came first
        card["b"].weights.model = object()
        card["b"].gate.turn("ready")
    await growing
    assert card.states == {"a": "asleep", "b": "ready"}
    await settle(card)


async def test_a_request_for_a_model_that_a_reload_is_making_anew_waits_for_that():
    card = SmallCard("a", "b")
    old, new = card["a"], card.another("a")
    may_serve, seen = asyncio.Event(), []

    def first_steps(model: object) -> Generator[None]:
        while not may_serve.is_set():
            yield

    new.hooks.move_in = first_steps
    new.gate.state = "loading"
    making = asyncio.create_task(renew(card.manager, old, new, ModelUnavailableError("gone")))
    await until(lambda: card["a"] is new)
    waiting = wants(card, "a")
    await asyncio.sleep(0.03)
    seen.append(new.gate.state)
    may_serve.set()
    await making
    await waiting
    assert (seen, new.gate.state, new.weights.loaded) == (["loading"], "ready", 0)
    await settle(card)


# --- who fails -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", [True, False], ids=["its gate is closed", "its gate is open"])
async def test_a_model_that_fails_keeps_its_place_until_it_is_buried(card_with_busy_a, monkeypatch, closed):
    card = card_with_busy_a
    monkeypatch.setattr(manager, "PATIENCE_SECONDS", 0.0 if closed else 60.0)
    waiting, a = wants(card, "b"), card["a"]
    await until(lambda: card.states["b"] == "waking" and a.awake is not closed)
    a.gate.fail(ModelUnavailableError("a has failed"))
    a.hooks.busy = False
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await card.manager.discard(a, RuntimeError("injected"))
    async with asyncio.timeout(5):
        await waiting
    assert card.states == {"b": "ready"}
    await settle(card)


@pytest.fixture
def card_with_busy_a() -> SmallCard:
    card = SmallCard("a", "b")
    card["a"].hooks.busy = True
    return card


async def test_an_engine_that_fails_on_its_way_in_does_not_open_its_gate():
    card = SmallCard(a=range(2), b=range(2, 4))
    b, refusal = card["b"], ModelUnavailableError("b has failed")
    b.weights.may_load.clear()
    waiting = asyncio.create_task(card.manager.wake("b"))
    await until(lambda: card.manager.pool.has_home("b"))
    b.gate.fail(refusal)
    b.weights.may_load.set()
    with pytest.raises(ModelUnavailableError, match="b has failed"):
        await waiting
    assert (b.gate.state, b.gate.refusal) == ("failed", refusal)
    await card.manager.discard(b, refusal)
    assert not card.manager.pool.has_home("b")
    await settle(card)


async def test_one_that_cannot_be_cleared_away_has_failed_and_leaves_its_place():
    card = SmallCard(a=range(2), b=range(2, 4))
    b = card["b"]
    b.weights.load = b.engine.give_up = _broken
    with pytest.raises(BrokenModelError, match="injected"):
        await wants(card, "b")
    assert b.gate.state == "failed"
    with pytest.raises(ModelUnavailableError, match="out of service; waking it up"):
        await b.gate.enter()
    assert "b" not in card.manager.card_models
    assert not card.manager.pool.has_home("b")
    await settle(card)


async def test_one_that_cannot_leave_in_good_order_has_failed_and_leaves_its_place():
    card = SmallCard("a", "b")
    a = card["a"]
    a.hooks.move_out = _broken
    async with asyncio.timeout(5):
        await wants(card, "b")
    assert (a.gate.state, card.states) == ("failed", {"b": "ready"})
    await settle(card)


def _broken(*_: object) -> Any:
    raise RuntimeError("injected")


# --- requests on their way -------------------------------------------------------------------------------


async def test_a_request_between_two_queues_is_not_missed():
    """Seen from another thread it is nowhere for a moment; the card's loop knows better."""
    card = SmallCard("a", "b")
    hooks, has_requests = card["a"].hooks, True
    hooks.has_requests = lambda: card.loop.is_running and has_requests
    sleep = asyncio.create_task(card.manager.sleep("a", 1))
    await asyncio.sleep(0.05)
    assert card.manager.pool.has_home("a")
    has_requests = False
    await sleep
    assert not card.manager.pool.has_home("a")


class SlowLoop(Loop):
    """Runs what it is given in order, some time later. `then` happens when it has run `count` calls."""

    def __init__(self, count: int, then: Callable[[], None]):
        self._calls: list[Callable[[], None]] = []
        self._left, self._then = count, then

    def post(self, call: Callable[[], None]) -> None:
        self._calls.append(call)
        asyncio.get_running_loop().call_later(0.01, self._run_next)

    def _run_next(self) -> None:
        super().post(self._calls.pop(0))
        self._left -= 1
        if self._left == 0:
            self._then()


async def test_a_request_that_is_let_in_while_the_loop_is_asked_is_not_missed():
    """It isn't with its engine yet when its model is found idle: one that leaves for good leaves after it."""

    def let_in() -> None:
        with a.gate.arriving():
            loop.post(lambda: setattr(a.hooks, "busy", True))

    loop = SlowLoop(1, let_in)
    card = SmallCard("a", loop=loop)
    a = card["a"]
    leaving = asyncio.create_task(retire(card.manager, a, ModelUnavailableError("gone")))
    await until(lambda: a.hooks.busy)
    await leaves_after_its_requests(card, a, leaving)


async def test_a_request_that_is_let_in_once_the_loop_has_answered_is_not_missed():
    """Somebody else has the card when the model that is to leave is found idle."""
    card = SmallCard("a")
    a = card["a"]
    async with card.manager.still():
        leaving = asyncio.create_task(retire(card.manager, a, ModelUnavailableError("gone")))
        await until(lambda: card.manager._quiet.is_quiet(a))
        await a.gate.enter()
    a.hooks.busy = True
    await leaves_after_its_requests(card, a, leaving)


async def leaves_after_its_requests(card: SmallCard, a: Any, leaving: "asyncio.Task[None]") -> None:
    await asyncio.sleep(0.1)
    assert "a" in card.manager.card_models
    assert card.manager.pool.has_home("a")
    a.hooks.busy = False
    async with asyncio.timeout(5):
        await leaving
    assert card.states == {}
    await settle(card)
