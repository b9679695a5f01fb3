"""The two ways to read a stream: taking what is ready, and iterating."""

import asyncio

import pytest

from onecard.engines.api import EngineFailedError, TokenChunk
from onecard.engines.paged.stream import TokenStream


def token(text, finish=None):
    return TokenChunk(0, text, (1, 2), finish_reason=finish)


def test_taking_empties_and_ends():
    stream = TokenStream([1], None, 1)
    assert stream.take() == []
    stream.push(token("a"))
    stream.push(token("b", "stop"))
    assert stream.take() == [token("a"), token("b", "stop")]
    assert stream.take() is None
    assert stream.completion_tokens == 4


def test_what_comes_after_the_end_is_dropped():
    stream = TokenStream([1], None, 1)
    stream.push(token("a", "stop"))
    stream.push(token("b"))
    assert stream.take() == [token("a", "stop")]
    assert stream.completion_tokens == 2


def test_an_error_is_raised_after_what_came_before():
    stream = TokenStream([1], None, 1)
    stream.push(token("a"))
    stream.fail(EngineFailedError("no"))
    assert stream.take() == [token("a")]
    for _ in range(2):
        with pytest.raises(EngineFailedError, match="no"):
            stream.take()


def test_the_reader_is_called_for_chunks_notices_errors_and_aborts():
    calls = []
    stream = TokenStream([1], None, 2)
    stream.on_abort(lambda: calls.append("abort"))
    stream.on_ready(lambda: calls.append("ready"))
    assert calls == []
    stream.push(token("a"))
    stream.notice = "waiting"
    stream.abort()
    stream.abort()
    assert calls == ["ready", "ready", "abort", "ready"]
    stream.fail(EngineFailedError("no"))
    assert calls[-1] == "ready"


def test_a_finished_stream_is_not_aborted():
    aborts = []
    stream = TokenStream([1], None, 1)
    stream.on_abort(lambda: aborts.append(1))
    stream.push(token("a", "stop"))
    stream.abort()
    assert not aborts


def test_the_engine_hears_once_that_the_reader_has_enough_and_once_that_it_goes_on():
    told = []
    stream = TokenStream([1], None, 1)
    stream.on_pause(told.append)
    stream.pause()
    stream.pause()
    stream.resume()
    stream.resume()
    assert told == [True, False]


def test_an_engine_that_comes_late_hears_that_the_reader_has_enough():
    told = []
    stream = TokenStream([1], None, 1)
    stream.pause()
    stream.on_pause(told.append)
    assert told == [True]


def test_nobody_is_told_of_a_stream_that_has_ended():
    told = []
    stream = TokenStream([1], None, 1)
    stream.on_pause(told.append)
    stream.push(token("a", "stop"))
    stream.pause()
    assert told == []


async def test_iterating_waits_and_goes_on_after_a_break():
    stream = TokenStream([1], None, 1)
    loop = asyncio.get_running_loop()
    for i, finish in enumerate((None, None, "stop")):
        loop.call_later(0.002 * i, stream.push, token(str(i), finish))
    async for chunk in stream:
        assert chunk.text == "0"
        break
    assert [chunk.text async for chunk in stream] == ["1", "2"]


async def test_iterating_raises_the_engines_error():
    stream = TokenStream([1], None, 1)
    stream.push(token("a"))
    stream.fail(EngineFailedError("no"))
    assert await anext(stream) == token("a")
    with pytest.raises(EngineFailedError, match="no"):
        await anext(stream)
