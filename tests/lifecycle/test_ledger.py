"""What is said of models that are on their way: a card's pages always add up to its arena."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from manager_helpers import SmallCard

from onecard.engines.api import ModelLedger
from onecard.engines.lifecycle import manager
from onecard.engines.lifecycle.ledger import card_ledger, weight_bytes
from onecard.engines.node.local_node import LocalNode
from onecard.registry.spec import Registry


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.001)


def rows(card: SmallCard) -> dict[str, ModelLedger]:
    ledger = card_ledger(card.manager)
    assert ledger.free_pages + sum(m.claimed_pages + m.owned_pages for m in ledger.models) == ledger.num_pages
    return {row.name: row for row in ledger.models}


def seen(card: SmallCard, name: str) -> tuple[str, int, int]:
    """State, pages of its home that are its own, bytes of weights on the card."""
    row = rows(card)[name]
    return row.state, row.claimed_pages, weight_bytes(card[name], card.manager.pool)


async def test_a_model_with_requests_is_falling_asleep_and_keeps_its_home():
    card = SmallCard("a")
    there, gone = (3, card["a"].weights.weight_bytes), (0, 0)
    assert seen(card, "a") == ("ready", *there)
    card["a"].hooks.busy = True
    sleeping = asyncio.create_task(card.manager.sleep("a", 1))
    await until(lambda: not card["a"].gate.is_open)
    assert seen(card, "a") == ("falling_asleep", *there)
    card["a"].hooks.busy = False
    await sleeping
    assert seen(card, "a") == ("asleep", *gone)


async def test_a_model_that_wakes_up_has_its_home_from_the_claim_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(manager, "PATIENCE_SECONDS", 0.0)
    card = SmallCard("a", "b")
    there, gone = (3, card["b"].weights.weight_bytes), (0, 0)
    card["a"].hooks.busy = True
    card["b"].weights.may_load.clear()
    waking = asyncio.create_task(card["b"].gate.enter())
    await until(lambda: not card["a"].gate.is_open)
    assert (seen(card, "a")[0], seen(card, "b")) == ("falling_asleep", ("waking", *gone))
    card["a"].hooks.busy = False
    await until(lambda: card.manager.pool.has_home("b"))
    assert (seen(card, "a")[0], seen(card, "b")) == ("asleep", ("waking", *there))
    card["b"].weights.may_load.set()
    await waking
    assert seen(card, "b") == ("ready", *there)


@asynccontextmanager
async def node_of(card: SmallCard) -> AsyncIterator[LocalNode]:
    """A node that serves the models of a card whose loop is not its own."""
    models: list[Any] = [
        SimpleNamespace(info=SimpleNamespace(name=name), card_model=card_model, card=card.manager)
        for name, card_model in card.manager.card_models.items()
    ]
    node = LocalNode(Registry(), [], models, None)  # type: ignore[arg-type]
    yield node
    await node.stop()


async def test_it_is_sleeping_from_when_it_sleeps_until_it_serves():
    card = SmallCard("a")
    async with node_of(card) as node:
        card["a"].hooks.busy = True
        sleeping = asyncio.create_task(card.manager.sleep("a", 1))
        await until(lambda: not card["a"].gate.is_open)
        assert not node.is_sleeping("a"), "its requests run"
        card["a"].hooks.busy = False
        await sleeping
        assert node.is_sleeping("a")
        card["a"].weights.may_load.clear()
        waking = asyncio.create_task(card["a"].gate.enter())
        await until(lambda: card.manager.pool.has_home("a"))
        assert node.is_sleeping("a")
        card["a"].weights.may_load.set()
        await waking
        assert not node.is_sleeping("a")


async def test_the_time_that_others_take_to_load_is_no_idle_time():
    card = SmallCard("a", "b")
    card["a"].gate.last_used -= 1000.0
    card["a"].policy.ttl = 900.0
    async with node_of(card):
        await card.manager.sleep_idle()
        assert card.states["a"] == "ready"
