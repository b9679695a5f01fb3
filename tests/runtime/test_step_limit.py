import logging

from hypothesis import given
from hypothesis import strategies as st

from onecard.engines.runtime.step_budget import StepLimit


def test_it_halves_and_grows_by_eighths_until_it_is_gone():
    limit = StepLimit("m")
    assert limit.tokens is None
    limit.shrink(100)
    assert limit.tokens == 50
    limit.shrink(30)
    assert limit.tokens == 15
    sizes = []
    while limit.tokens is not None:
        sizes.append(limit.tokens)
        limit.grow(limit.tokens, most=24)
    assert sizes == [15, 16, 18, 20, 22]


def test_a_small_step_proves_nothing():
    limit = StepLimit("m")
    limit.shrink(64)
    limit.grow(15, most=64)
    assert limit.tokens == 32
    limit.grow(16, most=64)
    assert limit.tokens == 36


def test_a_change_is_told_once(caplog):
    limit = StepLimit("m")
    with caplog.at_level(logging.INFO):
        limit.shrink(64)
        for _ in range(200):  # there is memory for 34 tokens, which it doesn't know
            size = limit.tokens
            assert size is not None
            if size <= 34:
                limit.grow(size, most=64)
            else:
                limit.shrink(size)
        assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
        while limit.tokens is not None:  # now there is more
            limit.grow(limit.tokens, most=64)
        limit.shrink(64)
    assert [record.levelname for record in caplog.records[2:]] == ["INFO", "WARNING"]
    assert "m is out of memory in a step of 64 tokens: its steps have at most 32" in caplog.text


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_it_always_comes_down_to_one_token_and_back(most, first):
    limit, tries, size = StepLimit("m"), 0, min(first, most)
    while size > 1:
        limit.shrink(size)
        assert limit.tokens is not None
        assert 1 <= limit.tokens < size
        size, tries = limit.tokens, tries + 1
    assert tries <= 14
    for _ in range(100):
        limit.grow(size, most)
        size = limit.tokens or most
    assert limit.tokens is None
