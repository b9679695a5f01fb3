"""The order in which pages are taken, rule by rule, on hand-made snapshots."""

import pytest

from onecard.engines.memory.reclaim import (
    EngineSnapshot,
    EvictablePage,
    PoolSnapshot,
    Preempt,
    TakeBack,
    plan_idle,
    plan_reclaim,
)

NOW = 100.0


def snapshot(*engines: EngineSnapshot, free: int = 0) -> PoolSnapshot:
    return PoolSnapshot(sum(e.owned for e in engines) + free, 65536, free, NOW, engines)


def asker(owned: int = 0, floor: int = 0, ceiling: int = 100) -> EngineSnapshot:
    return EngineSnapshot("asker", owned, floor, ceiling)


def pages(*specs: tuple[int, float, float]) -> tuple[EvictablePage, ...]:
    return tuple(EvictablePage(*spec) for spec in specs)


def test_nothing_to_do_while_pages_are_free():
    lender = EngineSnapshot("a", 4, 0, 8, idle=(0, 1, 2, 3))
    assert plan_reclaim(snapshot(asker(), lender, free=2), "asker", 2) == []


def test_free_pages_count_toward_the_need():
    lender = EngineSnapshot("a", 4, 0, 8, idle=(0, 1, 2, 3))
    assert plan_reclaim(snapshot(asker(), lender, free=2), "asker", 3) == [TakeBack("a", 0)]


def test_idle_pages_of_borrowers_go_before_those_within_a_floor():
    within = EngineSnapshot("a", 2, 4, 8, idle=(0, 1))
    borrower = EngineSnapshot("b", 3, 1, 8, idle=(5, 6, 7))
    plan = plan_reclaim(snapshot(asker(), within, borrower), "asker", 4)
    assert plan == [TakeBack("b", 5), TakeBack("b", 6), TakeBack("b", 7), TakeBack("a", 0)]


def test_the_largest_borrower_gives_first():
    small = EngineSnapshot("a", 2, 1, 8, idle=(0, 1))
    large = EngineSnapshot("b", 5, 1, 8, idle=(5,))
    assert plan_reclaim(snapshot(asker(), small, large), "asker", 1) == [TakeBack("b", 5)]


def test_idle_pages_go_before_any_cache():
    cache = EngineSnapshot("a", 1, 0, 8, evictable=pages((3, 1.0, 0.001)))
    idle = EngineSnapshot("b", 1, 1, 8, idle=(9,))
    assert plan_reclaim(snapshot(asker(), cache, idle), "asker", 2) == [
        TakeBack("b", 9),
        TakeBack("a", 3),
    ]


def test_the_least_valuable_cache_of_any_engine_goes_first():
    cheap_but_fresh = EngineSnapshot("a", 2, 0, 8, evictable=pages((0, 98.0, 1.0), (1, 99.0, 1.0)))
    dear_but_old = EngineSnapshot("b", 2, 0, 8, evictable=pages((2, 10.0, 9.0), (3, 80.0, 9.0)))
    plan = plan_reclaim(snapshot(asker(), cheap_but_fresh, dear_but_old), "asker", 4)
    # Values: b2 9/90 = 0.1, b3 9/20 = 0.45, a0 1/2 = 0.5, a1 1/1 = 1.
    assert plan == [TakeBack("b", 2), TakeBack("b", 3), TakeBack("a", 0), TakeBack("a", 1)]


def test_at_equal_cost_the_oldest_goes_first_and_at_equal_age_the_cheapest():
    old = EngineSnapshot("a", 2, 0, 8, evictable=pages((0, 50.0, 2.0), (1, 60.0, 2.0)))
    cheap = EngineSnapshot("b", 1, 0, 8, evictable=pages((2, 60.0, 1.0)))
    plan = plan_reclaim(snapshot(asker(), old, cheap), "asker", 3)
    assert plan == [TakeBack("b", 2), TakeBack("a", 0), TakeBack("a", 1)]


def test_above_its_floor_an_engine_gets_nothing_but_cache():
    busy = EngineSnapshot("a", 6, 1, 8, evictable=pages((0, 1.0, 1.0)))
    assert plan_reclaim(snapshot(asker(owned=2, floor=2), busy), "asker", 1) == [TakeBack("a", 0)]
    assert plan_reclaim(snapshot(asker(owned=2, floor=2), busy), "asker", 2) is None


def test_below_its_floor_an_engine_recalls_a_loan():
    busy = EngineSnapshot("a", 6, 4, 8)
    assert plan_reclaim(snapshot(asker(owned=0, floor=2), busy), "asker", 2) == [Preempt("a", 2)]


def test_only_the_part_below_the_floor_may_preempt():
    busy = EngineSnapshot("a", 6, 1, 8, evictable=pages((0, 1.0, 1.0)))
    plan = plan_reclaim(snapshot(asker(owned=1, floor=2), busy), "asker", 2)
    assert plan == [TakeBack("a", 0), Preempt("a", 1)]
    assert plan_reclaim(snapshot(asker(owned=1, floor=2), busy), "asker", 3) is None


def test_cache_goes_before_anybody_is_preempted():
    borrower = EngineSnapshot("a", 6, 0, 8)
    cache = EngineSnapshot("b", 2, 2, 8, evictable=pages((7, NOW, 1e9)))
    plan = plan_reclaim(snapshot(asker(floor=2), borrower, cache), "asker", 1)
    assert plan == [TakeBack("b", 7)]


def test_preemption_stops_at_the_victims_floor():
    a = EngineSnapshot("a", 5, 4, 8)
    b = EngineSnapshot("b", 3, 1, 8)
    view = snapshot(asker(floor=3), a, b)
    assert plan_reclaim(view, "asker", 3) == [Preempt("b", 2), Preempt("a", 1)]
    assert plan_reclaim(snapshot(asker(floor=4), a, b), "asker", 4) is None


def test_an_engine_that_can_free_no_more_is_left_alone():
    a = EngineSnapshot("a", 5, 1, 8, preemptable=False)
    assert plan_reclaim(snapshot(asker(floor=3), a), "asker", 1) is None


def test_only_pages_in_use_are_kept_below_the_floor():
    """Idle and cached ones go, whoever waits: two engines that kept pages for requests that have outgrown
    their floors would keep them from each other for ever."""
    owner = EngineSnapshot("a", 4, 3, 8, idle=(0,), evictable=pages((1, 1.0, 1.0), (2, 2.0, 1.0)))
    taken = [TakeBack("a", 0), TakeBack("a", 1), TakeBack("a", 2)]
    assert plan_reclaim(snapshot(asker(), owner), "asker", 3) == taken
    assert plan_reclaim(snapshot(asker(floor=4), owner), "asker", 4) is None


def test_pages_in_use_are_kept_below_the_floor_even_if_cached_ones_were_on_loan():
    owner = EngineSnapshot("a", 6, 3, 8, idle=(0,), evictable=pages((1, 1.0, 1.0)))
    plan = [TakeBack("a", 0), TakeBack("a", 1), Preempt("a", 1)]
    assert plan_reclaim(snapshot(asker(floor=3), owner), "asker", 3) == plan
    assert plan_reclaim(snapshot(asker(floor=4), owner), "asker", 4) is None


def test_the_ceiling_holds_even_when_pages_are_free():
    assert plan_reclaim(snapshot(asker(owned=3, ceiling=4), free=5), "asker", 2) is None
    assert plan_reclaim(snapshot(asker(owned=3, ceiling=4), free=5), "asker", 1) == []


def test_an_engine_never_takes_its_own_pages():
    own = EngineSnapshot("asker", 3, 0, 8, idle=(0,), evictable=pages((1, 1.0, 1.0)))
    assert plan_reclaim(snapshot(own), "asker", 1) is None


def test_plan_idle_takes_what_there_is_and_evicts_nothing():
    a = EngineSnapshot("a", 3, 0, 8, idle=(4,), evictable=pages((5, 1.0, 1.0)))
    assert plan_idle(snapshot(asker(), a), "asker", 3) == [TakeBack("a", 4)]
    assert plan_idle(snapshot(asker(), a, free=3), "asker", 3) == []


@pytest.mark.parametrize("age", [0.0, -5.0])
def test_a_page_used_this_instant_has_a_finite_value(age):
    assert 0 < EvictablePage(0, NOW - age, 2.0).value(NOW) < float("inf")
