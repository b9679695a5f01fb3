"""Waking and sleeping in the page pool: whose pages a home takes, and what becomes of what was in them."""

import pytest

from onecard.engines.memory.accounts import FreePages
from onecard.engines.memory.page_pool import PagePool, PoolIntegrityError


def out_of_memory(moves: dict[int, int]) -> None:
    raise MemoryError


def test_a_home_takes_exactly_its_free_pages_and_gives_them_back(page_pool):
    assert page_pool.claim_home("m", range(2, 5))
    assert (page_pool.free_pages, page_pool.home_pages, page_pool.home("m")) == (5, 3, {2, 3, 4})
    assert page_pool.snapshot().homes == (("m", (2, 3, 4)),)
    page_pool.check_integrity()
    page_pool.release_home("m")
    assert (page_pool.free_pages, page_pool.home_pages, page_pool.home("m")) == (8, 0, frozenset())
    page_pool.check_integrity()


def test_a_page_of_another_home_is_not_to_be_had(engine, page_pool):
    a = engine("a")
    a.end(a.start(4))
    assert page_pool.claim_home("m", range(4, 6))
    assert not page_pool.claim_home("n", range(5))
    assert page_pool.home("n") == frozenset()
    assert page_pool.owned("a") == 1, "nothing was taken"
    a.check()
    page_pool.release_home("m")
    assert page_pool.claim_home("n", range(5))


def test_idle_and_cached_pages_are_evicted(engine, page_pool):
    a = engine("a")
    kept = a.start(8, b"kept")
    a.end(a.start(12, b"gone"))
    a.end(a.start(4))
    assert page_pool.claim_home("m", range(2, 6))
    assert (len(a.cached(b"gone", 12)), a.requests, a.moves) == (0, [kept], {})
    assert page_pool.recalls["a"] == 4
    a.check()


def test_blocks_in_use_move_to_free_blocks_and_pages_outside(engine, page_pool):
    a, b = engine("a"), engine("b", block_bytes=20 * 1024)
    request, other = a.start(6), b.start(3)
    a.pool.touch(request[:2])
    shared = list(request)
    a.requests.append(shared)
    assert page_pool.claim_home("m", range(2))
    assert a.pages(request) <= {3, 4, 5, 6, 7}
    assert (shared, a.pool.num_used_blocks) == (request, 6), "shared blocks move once, for both"
    assert len(a.moves) == 6
    assert other == b.requests[0]
    a.pool.free(request[:2])
    a.requests.remove(shared)
    assert a.pool.num_used_blocks == 6
    a.check()
    b.check()


def test_a_moved_blocks_prefix_is_found_at_its_new_place(engine, page_pool):
    a = engine("a")
    request = a.start(4, b"x")
    assert page_pool.claim_home("m", range(1))
    assert a.cached(b"x", 4) == request
    assert a.pages(request) == {1}
    a.end(request)
    assert len(a.cached(b"x", 4)) == 4
    a.check()


def test_own_cache_makes_room_for_blocks_in_use(engine, page_pool):
    a = engine("a")
    oldest = a.start(4)
    cached = a.start(12, b"x")
    newest = a.start(16)
    a.end(cached)
    assert page_pool.claim_home("m", range(1))
    assert (a.requests, a.waiting, a.pages(oldest)) == ([oldest, newest], [], {3})
    assert len(a.cached(b"x", 12)) == 8
    a.check()


def test_without_room_the_newest_are_preempted_and_the_others_move(engine, page_pool):
    a = engine("a")
    first, _ = a.start(16), a.start(16)
    assert (page_pool.free_pages, a.pages(first)) == (0, {0, 1, 2, 3})
    assert page_pool.claim_home("m", range(2))
    assert (a.waiting, a.requests) == ([16], [first])
    assert not a.pages(first) & {0, 1}
    a.check()


def test_a_claim_in_vain_leaves_what_has_moved_where_it_is(engine, page_pool):
    """A page's blocks have moved when a step in flight turns out to hold the next page."""
    a, b = engine("a", ceiling=3), engine("b", ceiling=4)
    a.start(12)
    b.start(16)
    a.stepping = True
    assert not page_pool.claim_home("m", range(2))
    assert (page_pool.owned("a"), page_pool.free_pages, len(a.moves)) == (3, 1, 4)
    a.check()
    b.check()


def test_an_engine_that_cannot_move_preempts(engine, page_pool):
    a = engine("a")
    a.move_blocks = None
    a.start(4)
    a.start(8)
    assert page_pool.claim_home("m", range(1))
    assert a.waiting == [8, 4]
    assert not a.requests
    assert page_pool.preemptions == {"wake": 2}
    a.check()


def test_a_step_in_flight_keeps_its_page_and_the_claim_changes_nothing(engine, page_pool):
    a, other = engine("a"), engine("other", ceiling=4)
    a.move_blocks, a.stepping = None, True
    request = a.start(4)
    other.end(other.start(8, b"x"))
    assert not page_pool.claim_home("m", range(8))
    assert (a.requests, page_pool.home_pages, page_pool.owned("a")) == ([request], 0, 1)
    a.check()
    other.check()
    a.stepping = False
    assert page_pool.claim_home("m", range(8))


def test_a_copy_that_finds_no_memory_leaves_everything_as_it_was(engine, page_pool):
    a = engine("a")
    request = a.start(8)
    before, a.move_blocks = list(request), out_of_memory
    with pytest.raises(MemoryError):
        page_pool.claim_home("m", range(2))
    assert not page_pool.has_home("m")
    assert (a.requests, page_pool.home_pages) == ([before], 0)
    a.check()
    del a.move_blocks
    assert page_pool.claim_home("m", range(2))
    assert a.pages(request).isdisjoint(range(2))
    a.check()


def test_a_copy_that_fails_after_others_worked_keeps_those_where_they_are(engine, page_pool):
    a, b = engine("a"), engine("b")
    a.start(4)
    request = b.start(4)
    b.move_blocks = out_of_memory
    with pytest.raises(MemoryError):
        page_pool.claim_home("m", range(2))
    assert len(a.moves) == 4
    assert b.pages(request) == {1}
    a.check()
    b.check()


def test_a_neighbour_on_loan_makes_room_for_blocks_within_a_floor(engine, page_pool):
    """The mover is below its floor once its pages are claimed: a loan is recalled for what it moves."""
    guaranteed, borrower = engine("guaranteed", floor=2), engine("borrower")
    request = guaranteed.start(8)
    borrower.start(20)
    late = borrower.start(4)
    assert (page_pool.free_pages, guaranteed.pages(request)) == (0, {0, 1})
    assert page_pool.claim_home("m", range(2))
    assert (guaranteed.requests, guaranteed.waiting) == ([request], [])
    assert borrower.waiting
    assert late not in borrower.requests
    assert page_pool.recalls["borrower"] == 2
    guaranteed.check()
    borrower.check()


def test_homes_and_floors_are_promised_together(engine, page_pool):
    engine("a", floor=3)
    assert page_pool.claim_home("m", range(4))
    with pytest.raises(ValueError, match="promised"):
        engine("b", floor=2)
    with pytest.raises(ValueError, match="promised"):
        page_pool.set_share("a", 5, 8)
    with pytest.raises(ValueError, match="promised"):
        page_pool.claim_home("n", range(4, 6))
    with pytest.raises(ValueError, match="already"):
        page_pool.claim_home("m", range(4, 5))
    with pytest.raises(ValueError, match="isn't in"):
        page_pool.claim_home("n", range(7, 9))
    assert (page_pool.floor("a"), page_pool.home_pages) == (3, 4)


def test_what_an_engine_may_have_shrinks_by_the_homes(engine, page_pool):
    a = engine("a")
    assert (a.pool.max_blocks, a.pool.num_free_blocks()) == (32, 32)
    assert page_pool.claim_home("m", range(3))
    assert (a.pool.max_blocks, a.pool.num_free_blocks()) == (20, 20)
    assert a.start(21) is None
    assert a.start(20) is not None
    a.check()


def test_asleep_an_engine_has_no_share_and_awake_it_has_its_own_again(engine, page_pool):
    a, b = engine("a", floor=4), engine("b")
    page_pool.set_share("a", 0, 0)
    assert a.start(1) is None
    assert a.pool.num_free_blocks() == 0
    held = b.start(32)
    assert held is not None, "its floor is everybody's"
    page_pool.set_share("a", 4, 8)
    assert a.start(16) is not None
    b.check()


def test_a_lowered_ceiling_holds_once_pages_come_back(engine, page_pool):
    a = engine("a")
    first, second = a.start(8), a.start(12)
    page_pool.set_share("a", 0, 2)
    page_pool.check_integrity()
    assert (page_pool.owned("a"), a.start(1), page_pool.room("a")) == (5, None, 0)
    a.end(second)
    a.pool.release_idle_pages()
    a.check()
    assert page_pool.owned("a") == 2
    a.end(first)
    assert a.start(9) is None
    assert a.start(8) is not None
    a.check()


def test_only_who_owns_nothing_may_leave(engine, page_pool):
    a = engine("a", floor=8)
    held = a.start(4)
    with pytest.raises(PoolIntegrityError, match="1 pages of its own"):
        page_pool.remove_engine("a")
    a.end(held)
    a.pool.release_idle_pages()
    page_pool.remove_engine("a")
    assert page_pool.engines == ()
    engine("b", floor=8)


def test_blocks_keep_out_of_homes_while_they_can(engine, page_pool: PagePool):
    page_pool.keep_for_last(range(5))
    a = engine("a")
    assert a.pages(a.start(12)) == {5, 6, 7}
    assert a.pages(a.start(4)) == {0}
    page_pool.keep_for_last(range(3, 5))
    assert a.pages(a.start(8)) == {1, 2}


def test_integrity_finds_a_home_that_is_not_whole(page_pool):
    page_pool.claim_home("m", range(3))
    page_pool._homes["m"].pop()
    with pytest.raises(PoolIntegrityError, match="5 free and 0 owned pages and 2 of homes"):
        page_pool.check_integrity()


def test_free_pages_survive_taking_and_putting_back_the_same_ones():
    free = FreePages(range(6))
    free.keep_for_last({0, 1})
    for _ in range(200):
        for page in (3, 0):
            free.remove(page)
            free.add(page)
    assert len(free._heap) < 100
    assert (free.take(6), len(free)) == ([2, 3, 4, 5, 0, 1], 0)
