import asyncio

import pytest
from lifecycle_helpers import ask

from onecard.engines.api import ModelUnavailableError

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
