"""The blocks of one engine, and what two engines do to each other through the page pool."""

from types import SimpleNamespace

import pytest

from onecard.engines.memory.block_pool import BlockPool
from onecard.engines.memory.page_pool import PagePool, PoolIntegrityError

TOKENS = list(range(16))


def test_new_blocks_are_distinct_and_in_use(engine, page_pool):
    a = engine("a")
    blocks = a.start(6)
    assert len(set(blocks)) == 6 == a.pool.num_used_blocks
    assert page_pool.owned("a") == 2
    a.check()


def test_all_or_nothing(engine, page_pool):
    a = engine("a", ceiling=2)
    assert a.pool.max_blocks == a.pool.num_free_blocks() == 8
    assert a.start(9) is None
    assert (a.pool.num_used_blocks, a.pool.num_free_blocks()) == (0, 8)
    assert a.start(8) is not None
    assert a.start(1) is None
    a.check()


def test_blocks_without_a_hash_are_free_at_once_and_pages_go_back_but_a_reserve(engine, page_pool):
    a = engine("a")
    a.end(a.start(12))
    assert (page_pool.owned("a"), page_pool.free_pages) == (1, 7)
    a.pool.release_idle_pages()
    assert page_pool.free_pages == 8
    a.check()


def test_a_block_is_freed_with_its_last_reference(engine):
    a = engine("a")
    (block,) = a.pool.get_new_blocks(1)
    a.pool.touch([block])
    a.pool.free([block])
    assert a.pool.num_used_blocks == 1
    a.pool.free([block])
    assert a.pool.num_used_blocks == 0
    with pytest.raises(PoolIntegrityError, match="nobody holds"):
        a.pool.free([block])
    a.check()


def test_a_cached_block_comes_back_by_hash_and_tokens(engine):
    a = engine("a")
    (block,) = a.pool.get_new_blocks(1)
    a.pool.cache_full_block(block, b"h", TOKENS, b"parent")
    a.pool.free([block])
    assert a.pool.lookup(b"h", TOKENS, b"parent") == block
    assert a.pool.lookup(b"h", TOKENS) == block
    assert a.pool.lookup(b"h", TOKENS[::-1]) is None, "a hash collision must not be served"
    assert a.pool.lookup(b"h", TOKENS, b"other") is None
    assert a.pool.lookup(b"i", TOKENS) is None
    a.pool.touch([block])
    assert a.pool.num_used_blocks == 1
    a.check()


def test_of_two_blocks_with_one_hash_the_first_is_kept(engine):
    a = engine("a")
    first, second = a.pool.get_new_blocks(2)
    for block in (first, second):
        a.pool.cache_full_block(block, b"h", TOKENS)
    a.pool.free([first, second])
    assert a.pool.lookup(b"h", TOKENS) == first
    a.check()


def test_caching_can_be_off(page_pool):
    pool = BlockPool("a", page_pool, lambda page: range(4 * page, 4 * page + 4), enable_caching=False)
    page_pool.add_engine("a", 0, 8, pool)
    (block,) = pool.get_new_blocks(1)
    pool.cache_full_block(block, b"h", TOKENS)
    pool.free([block])
    assert pool.lookup(b"h", TOKENS) is None
    pool.check_integrity()


@pytest.mark.parametrize("misuse", ["touch", "cache"])
def test_a_block_nobody_holds_is_refused(engine, misuse):
    a = engine("a")
    (block,) = a.pool.get_new_blocks(1)
    a.pool.free([block])
    with pytest.raises(PoolIntegrityError):
        a.pool.touch([block]) if misuse == "touch" else a.pool.cache_full_block(block, b"h", TOKENS)


def test_a_page_too_small_for_a_block_is_refused(page_pool):
    with pytest.raises(ValueError, match="no whole block"):
        BlockPool("a", page_pool, lambda page: range(0))


def test_the_fullest_page_in_use_is_filled_first(engine):
    a = engine("a")
    first, second = a.start(4), a.start(4)
    a.pool.free(first[:3])
    a.pool.free(second[:1])
    assert a.pool.get_new_blocks(1) == second[:1]
    assert set(a.pool.get_new_blocks(2)) < set(first)
    a.check()


def test_cache_is_kept_while_pages_are_free(engine, page_pool):
    a = engine("a")
    a.end(a.start(4, b"x"))
    a.start(4)
    assert (len(a.cached(b"x", 4)), page_pool.owned("a")) == (4, 2)


def test_tails_are_evicted_before_heads_and_old_prefixes_before_new(engine):
    a = engine("a", ceiling=2)
    a.end(a.start(4, b"old"))
    a.end(a.start(4, b"new"))
    a.start(2)
    assert (len(a.cached(b"old", 4)), len(a.cached(b"new", 4))) == (2, 4)
    assert a.pool.lookup(b"old\0", [0]) is not None, "the head of a chain outlives its tail"
    a.start(3)
    assert (len(a.cached(b"old", 4)), len(a.cached(b"new", 4))) == (0, 3)
    a.check()


@pytest.mark.parametrize("length", [2, 4])
def test_a_hit_makes_a_prefix_new_again(engine, length):
    a = engine("a", ceiling=2)
    a.end(a.start(4, b"old"))
    a.end(a.start(4, b"new"))
    hits = a.cached(b"old", length)
    a.pool.touch(hits)
    a.pool.free(hits[::-1])
    a.start(4)
    assert (len(a.cached(b"old", 4)), len(a.cached(b"new", 4))) == (4, 0)


def test_blocks_in_use_are_never_evicted(engine):
    a = engine("a", ceiling=2)
    held = a.start(8, b"x")
    assert a.start(1) is None
    a.end(held)
    hits = a.cached(b"x", 5)
    a.pool.touch(hits)
    got = a.start(3)
    assert not set(got) & set(hits)
    assert a.start(1) is None
    a.check()


def test_reset_forgets_prefixes_and_gives_pages_back(engine, page_pool):
    a = engine("a")
    held = a.start(2, b"held")
    a.end(a.start(12, b"x"))
    assert a.pool.reset_prefix_cache() == 14
    assert not a.cached(b"x", 12)
    assert not a.cached(b"held", 2)
    a.end(held)
    a.pool.release_idle_pages()
    assert page_pool.free_pages == 8
    a.check()


def test_least_valuable_cache_goes_whoever_holds_it(engine, page_pool):
    """The other engine's cache is older but dearer: its own is worth less, so that goes."""
    dear, cheap = engine("dear", cost=1000.0), engine("cheap", cost=1.0)
    dear.end(dear.start(16, b"d"))
    cheap.end(cheap.start(16, b"c"))
    cheap.start(4)
    assert (len(dear.cached(b"d", 16)), len(cheap.cached(b"c", 16))) == (16, 12)
    dear.start(4)
    assert (len(dear.cached(b"d", 16)), len(cheap.cached(b"c", 16))) == (16, 8)
    assert page_pool.owned("dear") == 5
    dear.check()
    cheap.check()


def test_another_engines_old_cache_goes_before_a_fresh_own(engine, page_pool):
    old, fresh = engine("old"), engine("fresh")
    old.end(old.start(16, b"o"))
    for _ in range(50):
        page_pool.clock()
    fresh.end(fresh.start(16, b"f"))
    fresh.start(4)
    assert (len(old.cached(b"o", 16)), len(fresh.cached(b"f", 16))) == (12, 16)


def test_a_loan_is_recalled_by_preempting_the_newest(engine, page_pool):
    lender, borrower = engine("lender", floor=4), engine("borrower", floor=2)
    requests = [borrower.start(4) for _ in range(8)]
    assert (page_pool.free_pages, borrower.pool.num_free_blocks()) == (0, 0)
    assert lender.pool.num_free_blocks() == 16, "what is guaranteed counts as free"
    assert lender.start(8) is not None
    assert borrower.requests == requests[:6]
    assert page_pool.owned("lender") == 2
    assert lender.start(8) is not None
    assert lender.start(1) is None, "above its floor an engine preempts nobody"
    assert borrower.requests == requests[:4]
    assert page_pool.preemptions == {"floor": 4}
    lender.check()
    borrower.check()


def test_a_recall_leaves_the_borrower_its_floor(engine, page_pool):
    """The newest request spans more pages than are recalled; the rest stays with its owner."""
    lender, borrower = engine("lender", floor=4), engine("borrower", floor=3)
    borrower.start(4)
    borrower.start(28)
    assert lender.start(16) is not None
    assert (page_pool.owned("lender"), page_pool.owned("borrower")) == (4, 4)
    assert borrower.start(12) is not None
    lender.check()
    borrower.check()


def test_what_a_preempted_request_had_cached_is_evicted_for_the_recall(engine, page_pool):
    lender, borrower = engine("lender", floor=4), engine("borrower", floor=4)
    borrower.start(16, b"first")
    borrower.start(16, b"second")
    assert lender.start(16) is not None
    assert (len(borrower.cached(b"first", 16)), len(borrower.cached(b"second", 16))) == (16, 0)
    lender.check()


def test_a_failed_recall_leaves_everything_as_it_was(page_pool):
    """An engine that can free nothing now (a step in flight): shortage, and the next step tries again."""
    requests = SimpleNamespace(waiting_blocks=lambda: 0, preempt_newest=lambda: False, move_blocks=None)
    stubborn = BlockPool("stubborn", page_pool, lambda page: range(4 * page, 4 * page + 4), requests=requests)
    page_pool.add_engine("stubborn", 0, 8, stubborn)
    asker = BlockPool("asker", page_pool, lambda page: range(4 * page, 4 * page + 4))
    page_pool.add_engine("asker", 2, 8, asker)
    held = stubborn.get_new_blocks(32)
    assert asker.get_new_blocks(1) is None
    requests.preempt_newest = lambda: held and (stubborn.free([held.pop()]) or True)
    assert asker.get_new_blocks(1) is not None
    page_pool.check_integrity()
    stubborn.check_integrity()


def test_shortage_costs_no_cache(engine):
    a, b = engine("a", ceiling=4), engine("b")
    a.end(a.start(8, b"x"))
    b.start(24)
    assert a.start(9) is None
    assert len(a.cached(b"x", 8)) == 8
    a.check()


def test_idle_reserves_of_others_are_taken_before_any_cache(engine, page_pool):
    a, b = engine("a"), engine("b")
    a.end(a.start(4))
    assert page_pool.owned("a") == 1
    b.end(b.start(28, b"x"))
    b.start(4)
    assert (page_pool.owned("a"), len(b.cached(b"x", 28))) == (0, 28)


def test_page_aware_eviction_empties_pages_one_after_another(engine):
    """Eviction stays in one page until it is used up, so the others remain whole for other engines."""
    a = engine("a", ceiling=4)
    for name in (b"1", b"2", b"3", b"4"):
        a.end(a.start(4, name))
    a.start(3)
    assert len(a.pool.evictable_pages()) == 3


def test_evictable_pages_come_oldest_first_and_may_be_cut(engine):
    a = engine("a")
    for name in (b"1", b"2", b"3"):
        a.end(a.start(4, name))
    pages = a.pool.evictable_pages()
    assert [p.last_used for p in pages] == sorted(p.last_used for p in pages)
    assert a.pool.evictable_pages(2) == pages[:2]
    assert {p.cost for p in pages} == {4.0}


def test_a_page_in_use_is_never_given_up(engine):
    a = engine("a")
    a.start(1)
    with pytest.raises(PoolIntegrityError, match="in use"):
        a.pool.evict_page(next(iter(a.page_pool.pages_of("a"))))


@pytest.mark.parametrize("damage", ["reference", "count", "hash", "page", "list"])
def test_integrity_finds_damage(engine, page_pool, damage):
    a = engine("a")
    a.start(3, b"x")
    a.check()
    page = next(iter(a.pool._book.pages.by_id.values()))
    if damage == "reference":
        a.pool._book.refs.popitem()
    elif damage == "count":
        a.pool._book.num_free += 1
    elif damage == "hash":
        a.pool._book.prefixes._blocks.popitem()
    elif damage == "page":
        page_pool.release("a", [page.id])
    else:
        a.pool._book.pages.idle[page.id] = page
    with pytest.raises(PoolIntegrityError):
        a.check()


def test_page_pool_refuses_what_it_cannot_promise(page_pool: PagePool, engine):
    engine("a", floor=5)
    with pytest.raises(ValueError, match="promised"):
        engine("b", floor=4)
    with pytest.raises(ValueError, match="already"):
        engine("a")
    with pytest.raises(ValueError, match="floor"):
        engine("c", floor=3, ceiling=2)
    with pytest.raises(PoolIntegrityError, match="doesn't own"):
        page_pool.release("a", [0])


def test_the_page_pool_finds_a_lost_page(page_pool, engine):
    engine("a")
    page_pool._free.take(1)
    with pytest.raises(PoolIntegrityError, match="7 free and 0 owned pages and 0 of homes"):
        page_pool.check_integrity()
