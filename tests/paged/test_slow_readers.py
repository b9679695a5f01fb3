"""An engine whose clients stop reading, or hang up on many prompts at once."""

import asyncio

import pytest

from onecard.engines.api import GenerateRequest, SamplingParams

pytestmark = pytest.mark.weights
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)


async def until(holds):
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.002)


async def text_of(stream):
    return "".join([chunk.text async for chunk in stream])


def test_a_paused_answer_is_not_computed_and_reads_the_same_once_it_goes_on(demo_node):
    engine = demo_node.node.engine("smollm2")

    async def ask():
        whole = await text_of(await engine.generate(GenerateRequest("whole", "Once upon a time", GREEDY)))
        stream = await engine.generate(GenerateRequest("paused", "Once upon a time", GREEDY))
        await until(lambda: stream.completion_tokens >= 3)
        stream.pause()
        await until(lambda: engine.core.scheduler.paused and not engine.core.num_running)
        await asyncio.sleep(0.05)
        paused_at = stream.completion_tokens
        other = await text_of(await engine.generate(GenerateRequest("other", "Once upon a time", GREEDY)))
        assert stream.completion_tokens == paused_at < 24
        assert engine.core.has_requests(), "the model doesn't fall asleep under it"
        stream.resume()
        assert await text_of(stream) == whole == other

    demo_node.call(ask())


def test_a_paused_answer_can_be_aborted(demo_node):
    engine = demo_node.node.engine("smollm2")

    async def ask():
        stream = await engine.generate(GenerateRequest("gone", "Once upon a time", GREEDY))
        await until(lambda: stream.completion_tokens >= 1)
        stream.pause()
        await until(lambda: engine.core.scheduler.paused)
        stream.abort()
        await until(lambda: not engine.core.has_requests())

    demo_node.call(ask())


def test_a_client_that_hangs_up_on_many_prompts_costs_the_card_s_loop_one_call(demo_node, monkeypatch):
    engine = demo_node.node.engine("smollm2")

    async def ask():
        streams = [
            await engine.generate(GenerateRequest(f"many-{i}", f"Story {i}", GREEDY, group="many"))
            for i in range(40)
        ]
        posted, post = [], engine._loop.post
        monkeypatch.setattr(engine._loop, "post", lambda call: (posted.append(call), post(call)))
        for stream in streams:
            stream.abort()
        await until(lambda: posted and not engine.core.has_requests())
        assert len(posted) == 1

    demo_node.call(ask())
