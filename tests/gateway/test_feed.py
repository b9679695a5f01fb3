"""What is ready goes out at once, in order; waiting costs no task, and silence is noticed."""

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onecard.engines.api import EngineFailedError, ShuttingDownError, TokenChunk, TokenLogprob
from onecard.engines.paged.stream import TokenStream
from onecard.gateway.answers.merger import (
    KEEP_ALIVE,
    MOST_UNREAD,
    PIECE,
    Bell,
    StreamMerger,
    in_pieces,
    merge,
    size,
)

WITHIN = 1.0


def stream(n=1):
    return TokenStream([1], None, n)


def token(text, index=0, finish=None):
    return TokenChunk(index, text, (1,), finish_reason=finish)


def texts(batch):
    return [(i, chunk.index, chunk.text) for i, chunk in batch]


async def blocked(coroutine):
    """`coroutine` as a task that was seen to wait."""
    task = asyncio.create_task(coroutine)
    await asyncio.sleep(0.01)
    assert not task.done()
    return task


async def test_what_is_ready_goes_out_at_once():
    one = stream()
    for i in range(5):
        one.push(token(str(i), finish="stop" if i == 4 else None))
    with StreamMerger([one], 1) as feed:
        assert not feed.finished
        assert texts(await feed.batch()) == [(0, 0, "01234")]
        assert feed.finished
        assert await feed.batch() == []


async def test_a_batch_waits_for_the_first_chunk_and_takes_all_of_that_moment():
    one, two = stream(), stream()
    with StreamMerger([one, two], 1) as feed:
        waiting = await blocked(feed.batch())
        two.push(token("b"))
        one.push(token("a"))
        two.push(token("c", finish="length"))
        assert texts(await waiting) == [(1, 0, "bc"), (0, 0, "a")]
        waiting = await blocked(feed.batch())
        one.push(token("", finish="stop"))
        assert texts(await waiting) == [(0, 0, "")]
        assert feed.finished


async def test_an_error_comes_after_what_came_before_it():
    one = stream()
    one.push(token("a"))
    one.fail(EngineFailedError("the step failed"))
    with StreamMerger([one], 1) as feed:
        assert texts(await feed.batch()) == [(0, 0, "a")]
        assert not feed.finished
        with pytest.raises(EngineFailedError, match="the step failed"):
            await feed.batch()


async def test_an_error_wakes_who_waits_for_the_whole():
    one, two = stream(), stream()
    with StreamMerger([one, two], 1) as feed:
        waiting = await blocked(feed.piece())
        two.fail(EngineFailedError("the step failed"))
        with pytest.raises(EngineFailedError, match="the step failed"):
            await asyncio.wait_for(waiting, WITHIN)


@pytest.mark.parametrize(("reason", "error"), [("abort", ShuttingDownError), ("error", EngineFailedError)])
async def test_an_answer_that_was_cut_off_is_an_error(reason, error):
    one = stream(2)
    one.push(token("a"))
    one.push(token("b", 1, finish=reason))
    with StreamMerger([one], 2) as feed:
        assert texts(await feed.batch()) == [(0, 0, "a")]
        with pytest.raises(error):
            await feed.batch()


async def test_an_abort_ends_the_wait():
    one = stream()
    one.on_abort(lambda: None)
    with StreamMerger([one], 1) as feed:
        waiting = await blocked(feed.batch())
        one.abort()
        with pytest.raises(EngineFailedError, match="before all answers were finished"):
            await asyncio.wait_for(waiting, WITHIN)


async def test_the_whole_is_handed_out_once_and_wakes_its_reader_once():
    one, wakes = stream(2), 0
    with StreamMerger([one], 2) as feed:
        one.push(token("a"))
        waiting = await blocked(feed.piece())
        ring = feed._bell.ring

        def counted():
            nonlocal wakes
            wakes += 1
            ring()

        feed._bell.ring = counted
        for text in "bcd":
            one.push(token(text))
            one.push(token(text.upper(), 1))
        one.push(token("", finish="stop"))
        one.push(token("", 1, finish="length"))
        assert texts(merge(await waiting)) == [(0, 0, "abcd"), (0, 1, "BCD")]
        assert await feed.piece() == []
    assert wakes == 1


async def test_silence_is_reported_again_and_again_until_something_comes():
    one = stream()
    with StreamMerger([one], 1, quiet=0.02) as feed:
        assert [await feed.batch() for _ in range(3)] == [KEEP_ALIVE] * 3
        one.push(token("a"))
        assert texts(await feed.batch()) == [(0, 0, "a")]
        assert await feed.batch() == KEEP_ALIVE


async def test_a_notice_is_told_once_and_only_while_nothing_has_come():
    one = stream()
    one.notice = "the model is waking up"
    with StreamMerger([one], 1, quiet=0.02) as feed:
        assert [await feed.batch() for _ in range(2)] == ["the model is waking up", KEEP_ALIVE]
        waiting = asyncio.create_task(feed.batch())
        await asyncio.sleep(0)
        one.notice = "half of it is there"
        assert await waiting == "half of it is there"
        one.push(token("a"))
        one.notice = "late"
        assert texts(await feed.batch()) == [(0, 0, "a")]
        one.notice = "later"
        assert await feed.batch() == KEEP_ALIVE


async def test_a_closed_feed_hears_nothing_and_leaves_no_timer():
    one = stream()
    with StreamMerger([one], 1, quiet=60) as feed:
        waiting = await blocked(feed.batch())
        waiting.cancel()
    assert feed._bell._timer.cancelled()
    one.push(token("a"))
    assert one.take() == [token("a")]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.text("ab", max_size=2)), max_size=30))
def test_merging_keeps_each_answers_text_in_order(items):
    batch = [(i, token(text, index)) for i, index, text in items]
    merged = merge(batch)
    assert len({(i, chunk.index) for i, chunk in merged}) == len(merged)
    for i, chunk in merged:
        mine = [c for j, c in batch if (j, c.index) == (i, chunk.index)]
        assert chunk.text == "".join(c.text for c in mine)
        assert len(chunk.token_ids) == len(mine)
    assert len({(i, c.index) for i, c in batch}) == len(merged)


# --- the bell alone ------------------------------------------------------------------------------------


async def test_rings_within_the_patience_keep_the_silence_away():
    bell = Bell(0.1)
    loop = asyncio.get_running_loop()
    for i in range(8):
        loop.call_later(0.04, bell.ring)
        assert await bell.wait(), f"wait {i}"
    started = loop.time()
    assert not await bell.wait()
    assert loop.time() - started >= 0.095
    bell.close()


async def test_a_ring_that_nobody_waits_for_is_no_news_later():
    bell = Bell(0.02)
    bell.ring()
    assert not await bell.wait()
    bell.close()


async def test_without_patience_only_a_ring_wakes():
    bell = Bell(None)
    waiting = await blocked(bell.wait())
    bell.ring()
    bell.ring()
    assert await waiting
    bell.close()


class Watched(TokenStream):
    """Notes when its reader has enough."""

    def __init__(self, n=1):
        super().__init__([1], None, n)
        self.told = []
        self.on_pause(self.told.append)


def wide(index=0, entries=1, top=20):
    alternative = TokenLogprob(2, "b", -1.0, b"b")
    entry = TokenLogprob(1, "a", -0.5, b"a", (alternative,) * top)
    return TokenChunk(index, "a" * entries, (1,) * entries, (entry,) * entries)


async def test_streams_pause_where_too_much_waits_for_a_slow_client_and_go_on_once_it_is_handed_out():
    one, two = Watched(), Watched()
    with StreamMerger([one, two], 1) as feed:
        for _ in range(MOST_UNREAD // 21):
            one.push(wide())
        assert (one.told, two.told) == ([], [])
        two.push(wide())
        two.push(wide())
        assert (one.told, two.told) == ([True], [True])
        await feed.batch()
        assert (one.told, two.told) == ([True, False], [True, False])
        one.push(wide())
        assert len(one.told) == 2


async def test_plain_tokens_count_one_each():
    one = Watched()
    with StreamMerger([one], 1):
        for _ in range(MOST_UNREAD):
            one.push(token("a"))
        assert one.told == []
        one.push(token("a"))
        assert one.told == [True]


async def test_an_answer_that_is_read_as_a_whole_is_read_piece_by_piece_and_never_pauses():
    one = Watched()
    with StreamMerger([one], 1) as feed:
        waiting = await blocked(feed.piece())
        for _ in range(PIECE // 21):
            one.push(wide())
        await asyncio.sleep(0)
        assert not waiting.done()
        one.push(wide())
        assert sum(size(chunk) for _, chunk in await waiting) == (PIECE // 21 + 1) * 21
        assert one.told == []


async def test_each_stream_that_begins_is_told_of_once_read_or_not():
    streams, begun = [stream() for _ in range(3)], []
    with StreamMerger(streams, 1, on_begun=lambda: begun.append(1)) as feed:
        streams[1].push(token("a"))
        streams[1].push(token("b"))
        assert len(begun) == 1
        await feed.batch()
        streams[0].push(token("c", finish="stop"))
        assert len(begun) == 2


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 200), st.integers(0, 20)), max_size=40))
def test_pieces_are_the_batch_each_of_a_bounded_size(chunks):
    batch = [(i, wide(0, entries, top)) for i, entries, top in chunks]
    pieces = in_pieces(batch)
    assert [item for piece in pieces for item in piece] == batch
    for piece in pieces:
        assert len(piece) == 1 or sum(size(chunk) for _, chunk in piece) <= PIECE
    for piece, following in itertools.pairwise(pieces):
        assert sum(size(c) for _, c in piece) + size(following[0][1]) > PIECE, "no more than it takes"
