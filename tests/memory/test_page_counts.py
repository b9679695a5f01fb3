"""How many pages an engine has, as other threads see it: nothing that is being changed is walked."""

from collections.abc import Callable
from types import SimpleNamespace

from onecard.engines.lifecycle.ledger import card_ledger
from onecard.engines.memory.page_pool import PagePool


def test_counts_are_those_of_the_snapshot(engine: Callable, page_pool: PagePool):
    a, b = engine("a", floor=2), engine("b", ceiling=4)
    a.end(a.start(9, b"x"))
    a.start(5)
    a.waiting.append(7)
    b.end(b.start(8))
    for counted, listed in zip(page_pool.counts(), page_pool.snapshot().engines, strict=True):
        assert (counted.name, counted.owned, counted.floor, counted.ceiling) == (
            listed.name,
            listed.owned,
            listed.floor,
            listed.ceiling,
        )
        assert (counted.idle, counted.cached) == (len(listed.idle), len(listed.evictable))
        assert (counted.active, counted.borrowed) == (listed.active, listed.borrowed)
    assert [c.demand for c in page_pool.counts()] == [e.pool.demand_pages() for e in (a, b)]
    assert [(c.active, c.cached, c.idle) for c in page_pool.counts()] == [(2, 2, 0), (0, 0, 1)]


def test_the_ledger_walks_nothing_that_a_step_may_change(engine: Callable, page_pool: PagePool, monkeypatch):
    """Walked on the event loop's thread, a list of pages raises as soon as a step on the other changes it."""
    a = engine("a")
    a.end(a.start(9, b"x"))

    def walked(*args: object) -> None:
        raise RuntimeError("mutated during iteration")

    monkeypatch.setattr(page_pool, "snapshot", walked)
    for name in ("idle_pages", "evictable_pages"):
        monkeypatch.setattr(a.pool, name, walked)
    ledger = card_ledger(SimpleNamespace(card="gpu0", pool=page_pool, card_models={}))
    assert (ledger.free_pages, ledger.models) == (page_pool.free_pages, ())
    assert page_pool.counts()[0].cached == 3
