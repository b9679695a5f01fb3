"""An answer with thousands of log-probabilities is written beside the event loop."""

import asyncio
import gc
import time
from typing import Any

import orjson

from onecard.engines.api import TokenLogprob
from onecard.gateway.answers.logprobs import chat_logprobs
from onecard.gateway.http.body import INLINE_ENTRIES, json_built, json_response

TOP = tuple(TokenLogprob(i, f"wörd {i}", -0.5 * i, f"wörd {i}".encode()) for i in range(20))
ENTRY = TokenLogprob(1, "wörd 1", -0.5, "wörd 1".encode(), TOP)


async def test_the_event_loop_runs_on_while_a_large_answer_is_written() -> None:
    answer: dict[str, Any] = {"id": "x", "choices": [{"logprobs": None}]}

    def build() -> dict[str, Any]:
        answer["choices"][0]["logprobs"] = chat_logprobs([ENTRY] * 4000)
        return answer

    longest, last = 0.0, time.perf_counter()

    async def watch() -> None:
        nonlocal longest, last
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    gc.disable()  # a collection would look through all that this process has ever loaded
    watching = asyncio.create_task(watch())
    began = time.perf_counter()
    response = await json_built(build, 4000)
    seconds = time.perf_counter() - began
    watching.cancel()
    gc.enable()
    assert longest < seconds / 2
    assert response.body == json_response(answer).body


async def test_small_and_large_answers_are_the_same_text() -> None:
    answer = {"a": [1, {"b": [None] * INLINE_ENTRIES}], "c": [[2.5, "ü"]] * (INLINE_ENTRIES + 1), "d": (1,)}
    large, small = await json_built(lambda: answer, 10**6), await json_built(lambda: answer, 0)
    assert large.body == small.body == orjson.dumps(answer)
