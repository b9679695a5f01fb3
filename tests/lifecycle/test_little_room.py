import asyncio

import pytest
from lifecycle_helpers import ask, states

from onecard.engines.api import GenerateRequest, ModelUnavailableError, SamplingParams
from onecard.engines.lifecycle import manager

pytestmark = pytest.mark.weights

MIB = 1 << 20


def test_a_request_that_the_awake_models_leave_no_room_for_is_told_so(card_of):
    with card_of(1300 * MIB, a={"engine": {"max_model_len": 2048}}) as live:
        engine = live.node.engine("a")
        pool = live.node._cards[0].pool
        short = live.call(ask(live.node, "a"))
        left = 2  # pages: some hundred tokens
        taken = range(pool.num_pages - pool.free_pages, pool.num_pages - left)
        assert live.on_loop(engine, pool.claim_home, "someone", taken)
        words = "one two three four five six seven eight nine ten " * 120

        async def both() -> list:
            questions = (ask(live.node, "a", words), ask(live.node, "a"))
            return await asyncio.gather(*questions, return_exceptions=True)

        refused, answered = live.call(both())
        assert isinstance(refused, ModelUnavailableError)
        assert "blocks of a's cache" in refused.message
        assert answered == short
        live.on_loop(engine, pool.release_home, "someone")
        assert live.call(ask(live.node, "a", words))


def test_a_wake_leaves_everybody_room_to_serve(card_of):
    """The homes of all three fill the arena: who wakes up puts another one to sleep, and all are answered."""
    with card_of(1513 * MIB, a={}, b={}, c={"preload": False}) as live:
        plan = live.node._cards[0].plan
        assert plan.num_pages == sum(model.home_pages for model in plan.models)
        text = live.call(ask(live.node, "a"))
        for name in "cabcba":
            assert live.call(ask(live.node, name)) == text
            assert sorted(states(live).values()) == ["asleep", "ready", "ready"]


def test_a_wake_leaves_a_long_answer_the_room_it_needs(card_of, monkeypatch):
    """`a` and `c` fit together but for the longest requests of `a`: one that runs is finished first."""
    monkeypatch.setattr(manager, "PATIENCE_SECONDS", 0.0)
    with card_of(1080 * MIB, a={"engine": {"max_model_len": 2048}}, c={"preload": False}) as live:
        plan = live.node._cards[0].plan
        left = plan.num_pages - sum(model.home_pages for model in plan.models)
        tokens_in_page = plan.model("a").kv_tokens_ceiling // plan.model("a").ceiling_pages
        assert 0 < left * tokens_in_page < 950

        async def both() -> tuple[int, str]:
            sampling = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
            prompt = tuple(range(1000, 1950))
            stream = await live.node.engine("a").generate(GenerateRequest("long", prompt, sampling))
            first = await anext(stream)
            other = asyncio.create_task(ask(live.node, "c"))
            return len(first.token_ids) + sum([len(chunk.token_ids) async for chunk in stream]), await other

        tokens, answer = live.call(both())
        assert tokens == 40
        assert answer
        assert states(live) == {"a": "asleep", "c": "ready"}
