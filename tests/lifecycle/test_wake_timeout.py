"""How long a request waits for a sleeping model, and what becomes of the wake when nobody waits any more."""

import asyncio
from collections.abc import Callable

import pytest
from manager_helpers import SmallCard

from onecard.engines.api import ModelUnavailableError
from onecard.engines.lifecycle import manager
from onecard.engines.runtime.gate import Gate, WakeTimeout

TOO_LATE = (
    "The model `b` could not be woken within {} s: `a` is still busy with requests it has accepted. "
    "Try again later."
)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who makes room closes its gate at once."""
    monkeypatch.setattr(manager, "PATIENCE_SECONDS", 0.0)


@pytest.fixture
def card() -> SmallCard:
    """`a` is awake and busy, `b` wants its room."""
    card = SmallCard("a", "b")
    card["a"].hooks.busy = True
    return card


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.001)


def wants(card: SmallCard, name: str) -> "asyncio.Task[None]":
    """A request for the model."""
    return asyncio.create_task(card[name].gate.enter())


async def settle(card: SmallCard) -> None:
    await until(lambda: card.manager.is_quiet)


# --- whoever waits too long ------------------------------------------------------------------------------


@pytest.mark.parametrize("patience", [0.0, 60.0], ids=["its gate is closed", "its gate is still open"])
async def test_a_request_that_has_waited_too_long_hears_what_for(card, monkeypatch, patience):
    monkeypatch.setattr(manager, "PATIENCE_SECONDS", patience)
    card.timeout.seconds = 0.05
    with pytest.raises(ModelUnavailableError) as raised:
        await wants(card, "b")
    assert raised.value.message == TOO_LATE.format(0.05)
    assert (raised.value.status, raised.value.retry_after) == (503, 1)
    assert card["b"].gate.num_waiting == 0


@pytest.mark.usefixtures("impatient")
async def test_the_wake_goes_on_for_whoever_still_waits(card):
    card.timeout.seconds = 0.05
    first = wants(card, "b")
    await asyncio.sleep(0)
    card.timeout.seconds = 60.0  # counts for who comes from now on
    second = wants(card, "b")
    with pytest.raises(ModelUnavailableError, match=r"within 0\.05 s"):
        await first
    assert card.states == {"a": "asleep", "b": "waking"}
    card["a"].hooks.busy = False
    await second
    assert card.states == {"a": "asleep", "b": "ready"}


@pytest.mark.usefixtures("impatient")
async def test_those_that_wait_for_their_turn_hear_what_it_hangs_on():
    card = SmallCard("a", "b", "c")
    card["a"].hooks.busy = True
    first = wants(card, "b")
    await until(lambda: card.states["a"] == "asleep")
    card.timeout.seconds = 0.02
    for name in ("c", "a"):  # `a`: requests that came when its gate had closed
        with pytest.raises(ModelUnavailableError, match=f"`{name}` could.*`a` is still busy with requests"):
            await wants(card, name)
    card["a"].hooks.busy = False
    await first
    assert card.states == {"a": "asleep", "b": "ready", "c": "unloaded"}


async def test_weights_that_take_long_are_named(card):
    card["a"].hooks.busy = False
    card["b"].weights.may_load.clear()
    first = wants(card, "b")
    await until(lambda: card.manager.pool.has_home("b"))
    card.timeout.seconds = 0.05
    with pytest.raises(ModelUnavailableError, match="the weights of `b` are still on their way"):
        await wants(card, "b")
    card["b"].weights.may_load.set()
    await first


async def test_a_model_that_a_reload_brings_is_waited_for_no_longer():
    gate = Gate("new", SmallCard("a").manager, WakeTimeout(0.02), "loading")
    with pytest.raises(ModelUnavailableError, match="a change of the registry is still being carried out"):
        await gate.enter()


async def test_an_open_gate_keeps_nobody(card):
    card.timeout.seconds = 1e-9
    await wants(card, "a")


async def test_a_wake_that_fails_says_so_however_short_the_timeout(card):
    def broken(*_: object) -> None:
        raise TimeoutError("the disk doesn't answer")

    card["a"].hooks.busy = False
    card["b"].weights.load = broken
    with pytest.raises(ModelUnavailableError, match="`b` can't be woken up: the disk doesn't answer"):
        await wants(card, "b")


# --- when nobody waits any more --------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("how", ["hangs up", "times out"])
async def test_nobody_is_put_to_sleep_for_nobody(card, how):
    waiting = [wants(card, "b") for _ in range(2)]
    await until(lambda: card.states["a"] == "asleep")
    queued = wants(card, "a")
    waiting[0].cancel()
    await asyncio.sleep(0.05)
    assert card.states == {"a": "asleep", "b": "waking"}, "one still waits"
    if how == "times out":
        card.timeout.seconds = 0.02
        waiting.append(wants(card, "b"))
    waiting[1].cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(results[-1], asyncio.CancelledError if how == "hangs up" else ModelUnavailableError)
    async with asyncio.timeout(10):
        await queued
    assert card.states == {"a": "ready", "b": "unloaded"}
    await settle(card)
    assert card.manager.pool.home("a") == {0, 1, 2}


@pytest.mark.usefixtures("impatient")
async def test_the_next_request_starts_anew(card):
    left = wants(card, "b")
    await until(lambda: card.states["a"] == "asleep")
    left.cancel()
    await until(lambda: card.states["a"] == "ready")
    later = wants(card, "b")
    await until(lambda: card.states["a"] == "asleep")
    card["a"].hooks.busy = False
    await later
    assert card.states == {"a": "asleep", "b": "ready"}


@pytest.mark.usefixtures("impatient")
async def test_one_that_comes_in_the_moment_of_giving_up_is_served(card, monkeypatch):
    left, later = wants(card, "b"), []

    def has_requests() -> bool:
        """Asked once more before the attempt finds that nobody waits, and ends without another pause."""
        if left.done() and not later:
            later.append(wants(card, "b"))
        return card["a"].hooks.busy

    monkeypatch.setattr(card["a"].hooks, "has_requests", has_requests)
    await until(lambda: card.states["a"] == "asleep")
    left.cancel()
    await until(lambda: later and card.states == {"a": "asleep", "b": "waking"})
    card["a"].hooks.busy = False
    async with asyncio.timeout(10):
        await later[0]
    assert card.states == {"a": "asleep", "b": "ready"}


async def test_who_leaves_while_the_other_may_still_take_requests_changes_nothing(card):
    left = wants(card, "b")
    await until(lambda: card.states["b"] == "waking")
    left.cancel()
    await settle(card)
    assert card.states == {"a": "ready", "b": "unloaded"}


async def test_a_turn_that_nobody_waits_for_is_not_taken(card):
    card["a"].hooks.busy = False
    async with card.manager.still():
        left = wants(card, "b")
        await asyncio.sleep(0.01)
        left.cancel()
    await settle(card)
    assert card.states == {"a": "ready", "b": "unloaded"}


async def test_weights_that_are_on_their_way_arrive(card):
    card["a"].hooks.busy = False
    card["b"].weights.may_load.clear()
    left = wants(card, "b")
    await until(lambda: card.manager.pool.has_home("b"))
    left.cancel()
    await asyncio.sleep(0.05)
    card["b"].weights.may_load.set()
    await settle(card)
    assert card.states == {"a": "asleep", "b": "ready"}


@pytest.mark.usefixtures("impatient")
async def test_a_reload_that_wants_the_model_awake_counts(card):
    reload = asyncio.create_task(card.manager.wake("b"))
    left = wants(card, "b")
    await until(lambda: card.states["a"] == "asleep")
    left.cancel()
    await asyncio.sleep(0.05)
    assert card.states == {"a": "asleep", "b": "waking"}
    card["a"].hooks.busy = False
    await reload
    assert card.states == {"a": "asleep", "b": "ready"}


@pytest.mark.usefixtures("impatient")
async def test_a_model_that_failed_meanwhile_does_not_open_again(card):
    left = wants(card, "b")
    await until(lambda: card.states["a"] == "asleep")
    card["a"].gate.fail(ModelUnavailableError("a has failed"))
    left.cancel()
    await settle(card)
    assert card.states == {"a": "failed", "b": "unloaded"}
