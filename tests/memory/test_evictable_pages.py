"""Cached pages are listed by their value, however old they are."""

import random

from onecard.engines.memory.owned_pages import EvictablePages


def test_the_cheapest_comes_first_however_old_the_dearer_ones_are(engine, page_pool):
    a, taker = engine("a"), engine("taker")
    dear, cheap, rest = a.start(4, b"d"), a.start(4, b"c"), taker.start(24)
    assert rest is not None
    a.end(dear)
    for block in cheap[1:]:
        a.pool._book.prefixes.drop(block)
    page_pool.clock = lambda: 1000.0
    cheap_pages = a.pages(cheap)
    a.end(cheap)
    page_pool.clock = lambda: 5000.0
    (first,) = a.pool.evictable_pages(1)
    assert {first.page} == cheap_pages, "one cached block of 4000 ago, against four of 5000 ago"
    assert a.pages(taker.start(1)) == cheap_pages
    assert len(a.cached(b"d", 4)) == 4
    a.check()
    taker.check()


def test_listing_is_by_value_whatever_comes_and_goes():
    rng, pages, model = random.Random(0), EvictablePages(), {}
    for now in range(1, 2000):
        page = rng.randrange(60)
        if rng.random() < 0.3:
            pages.discard(page)
            model.pop(page, None)
        elif page not in model:
            model[page] = (rng.randint(1, 8), float(now))
            pages.put(page, *model[page])
        assert (len(pages), page in pages) == (len(model), page in model)
        listed = pages.cheapest(None, now + 10.0, 2.0)
        assert [e.value(now + 10.0) for e in listed] == sorted(e.value(now + 10.0) for e in listed)
        assert {(e.page, e.cost, e.last_used) for e in listed} == {
            (page, 2.0 * cached, used) for page, (cached, used) in model.items()
        }
        assert pages.cheapest(3, now + 10.0, 2.0) == listed[:3]


def test_of_equal_pages_one_that_was_used_before_all_of_them_goes_first():
    pages = EvictablePages()
    for page, cached, used in [(0, 4, 1.0), (1, 2, 2.0), (2, 2, 3.0)]:
        pages.put(page, cached, used)
    pages.put(0, 2, 1.0)
    assert [e.page for e in pages.cheapest(None, 9.0, 1.0)] == [0, 1, 2]
