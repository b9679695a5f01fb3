import asyncio
import time
import weakref
from typing import Any

import pytest
from lifecycle_helpers import ask, embed, states

from onecard.engines.api import GenerateRequest, InvalidRequestError, ModelUnavailableError, SamplingParams

pytestmark = pytest.mark.weights

MIB = 1 << 20
BIG = 2200 * MIB


@pytest.fixture(scope="module")
def roomy(card_of):
    """Both of the demo's models; weights of `smollm2` lie in its home as bfloat16, `minilm`'s are packed."""
    with card_of(BIG, smollm2={"engine": {"dtype": "bfloat16"}}, minilm={}) as live:
        yield live


def free_pages(live: Any) -> int:
    return live.node.ledger()[0].free_pages


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("name", ["smollm2", "minilm"])
def test_what_a_model_says_after_a_wake_is_what_it_said_before(roomy, name, level):
    use = ask(roomy.node, name) if name == "smollm2" else embed(roomy.node)
    before = roomy.call(use)
    roomy.wait_idle()
    awake_pages = free_pages(roomy)
    roomy.call(roomy.node.sleep(name, level))
    assert states(roomy)[name] == ("asleep" if level == 1 else "unloaded")
    assert roomy.node.is_sleeping(name)
    row = next(model for model in roomy.node.ledger()[0].models if model.name == name)
    assert free_pages(roomy) >= awake_pages + row.home_pages
    assert (row.host_bytes > 0) == (level == 1)
    after = roomy.call(ask(roomy.node, name) if name == "smollm2" else embed(roomy.node))
    assert after == before
    assert states(roomy)[name] == "ready"


def test_weights_come_back_to_where_they_were(roomy):
    runner = roomy.node.engine("smollm2").core._runner
    before = {n: p.data_ptr() for n, p in runner._model.named_parameters()}
    for level in (1, 2):
        roomy.call(roomy.node.sleep("smollm2", level))
        assert (runner._model is None) == (level == 2)
        roomy.call(roomy.node.wake("smollm2"))
        assert {n: p.data_ptr() for n, p in runner._model.named_parameters()} == before


@pytest.mark.parametrize("name", ["smollm2", "minilm"])
def test_a_sleeping_model_can_be_dropped(roomy, name):
    """Also what a library has packed for itself, which the engine keeps at level 1."""
    use = ask if name == "smollm2" else lambda node, _: embed(node)
    before = roomy.call(use(roomy.node, name))
    core = roomy.node.engine(name).core
    model = weakref.ref(core._runner._model if name == "smollm2" else core.model)
    roomy.call(roomy.node.sleep(name, 1))
    assert model() is not None
    roomy.call(roomy.node.sleep(name, 2))
    assert states(roomy)[name] == "unloaded"
    assert model() is None
    row = next(model for model in roomy.node.ledger()[0].models if model.name == name)
    assert row.host_bytes == 0
    assert roomy.call(use(roomy.node, name)) == before


def test_it_is_told_how_deep_a_model_sleeps(roomy):
    levels = [roomy.call(roomy.node.sleep("minilm", level)) for level in (1, 2, 1)]
    assert levels == [1, 2, 2], "what has been dropped isn't in host memory again"
    assert states(roomy)["minilm"] == "unloaded"
    roomy.call(roomy.node.wake("minilm"))


def test_sleeping_memory_is_everybodys_kv(roomy):
    pool = roomy.node.engine("smollm2").core.scheduler.kv.pool
    before = pool.num_free_blocks()
    roomy.call(roomy.node.sleep("minilm", 2))
    assert pool.num_free_blocks() > before
    roomy.call(roomy.node.wake("minilm"))


def test_a_model_sleeps_once_its_requests_have_finished_and_wakes_for_those_that_came_late(roomy):
    node = roomy.node

    async def during() -> tuple[list[str], str]:
        running = [asyncio.create_task(ask(node, "smollm2", tokens=40)) for _ in range(3)]
        await asyncio.sleep(0.3)
        falling_asleep = asyncio.create_task(node.sleep("smollm2"))
        await asyncio.sleep(0.05)
        late = asyncio.create_task(ask(node, "smollm2", tokens=40))
        await falling_asleep
        return await asyncio.gather(*running), await late

    texts, late = roomy.call(during())
    assert texts == [late] * 3
    assert len(late) > 20


def test_a_stream_to_a_sleeping_model_says_what_it_waits_for(roomy):
    node = roomy.node
    roomy.call(node.sleep("smollm2", 2))

    async def read() -> tuple[str | None, str]:
        request = GenerateRequest("r", "Hello", SamplingParams(temperature=0.0, max_tokens=3))
        stream = await node.engine("smollm2").generate(request)
        notice = stream.notice
        return notice, "".join([chunk.text async for chunk in stream])

    notice, text = roomy.call(read())
    assert notice == "smollm2 is waking up"
    assert text


def test_a_client_that_leaves_while_it_waits_leaves_nothing_behind(roomy):
    node = roomy.node
    roomy.call(node.sleep("smollm2", 2))

    async def leave() -> None:
        request = GenerateRequest("r", "Hello", SamplingParams(temperature=0.0, max_tokens=100))
        stream = await node.engine("smollm2").generate(request)
        await asyncio.sleep(0.02)
        stream.abort()
        assert stream.done
        waiting = asyncio.create_task(embed(node))
        await asyncio.sleep(0)
        waiting.cancel()

    roomy.call(leave())
    roomy.wait_idle()
    assert states(roomy)["smollm2"] == "ready"  # the wake that was begun is carried through
    assert node.engine("smollm2").core.scheduler.kv.pool.num_used_blocks == 0


def test_a_pinned_model_never_sleeps(card_of):
    with card_of(BIG, smollm2={"pinned": True}) as live:
        with pytest.raises(InvalidRequestError, match="pinned"):
            live.call(live.node.sleep("smollm2"))
        assert states(live) == {"smollm2": "ready"}


def test_an_idle_model_sleeps_by_itself_after_its_ttl(card_of):
    with card_of(BIG, smollm2={"ttl": 1.0}, minilm={}) as live:
        first = live.call(ask(live.node, "smollm2"))
        deadline = time.monotonic() + 20
        while states(live)["smollm2"] != "asleep" and time.monotonic() < deadline:
            time.sleep(0.1)
        assert states(live) == {"smollm2": "asleep", "minilm": "ready"}
        assert live.call(ask(live.node, "smollm2")) == first


def test_more_models_than_the_card_holds_take_turns(card_of):
    """Three copies and room for two: whoever was used least recently sleeps; `preload: false` starts so."""
    with card_of(1500 * MIB, a={}, b={}, c={"preload": False}) as live:
        assert states(live) == {"a": "ready", "b": "ready", "c": "unloaded"}
        text = live.call(ask(live.node, "a"))
        assert live.call(ask(live.node, "c")) == text
        after = states(live)
        assert after["c"] == "ready"
        assert sorted(after.values()).count("ready") == 2
        for name in ("a", "b", "c", "b", "a"):
            assert live.call(ask(live.node, name)) == text
            assert states(live)[name] == "ready"
        live.wait_idle()
        pool = live.node._cards[0].pool
        live.on_loop(live.node.engine("a"), pool.check_integrity)


def test_requests_to_all_of_them_at_once_are_all_answered(card_of):
    with card_of(1500 * MIB, a={}, b={}, c={"preload": False}) as live:
        text = live.call(ask(live.node, "a"))

        async def all_at_once() -> list[str]:
            return await asyncio.gather(*(ask(live.node, name) for name in "abcabcabc"))

        assert live.call(all_at_once()) == [text] * 9


def test_a_copy_that_finds_no_memory_makes_it_a_deeper_sleep(roomy, monkeypatch):
    card_model = roomy.node._models["smollm2"].card_model
    before = roomy.call(ask(roomy.node, "smollm2"))

    def no_memory() -> None:
        raise RuntimeError("CUDA error: out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(card_model.weights, "save", no_memory)
        roomy.call(roomy.node.sleep("smollm2", 1))
    assert states(roomy)["smollm2"] == "unloaded"
    assert card_model.weights.host_bytes == 0
    assert roomy.call(ask(roomy.node, "smollm2")) == before


def test_a_wake_that_fails_is_a_503_and_the_next_one_may_do_better(roomy, monkeypatch):
    card_model = roomy.node._models["smollm2"].card_model
    roomy.call(roomy.node.sleep("smollm2", 2))
    load = card_model.weights._load

    def broken(*_: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(card_model.weights, "_load", broken)
    with pytest.raises(ModelUnavailableError, match="the disk is gone"):
        roomy.call(ask(roomy.node, "smollm2"))
    assert states(roomy)["smollm2"] == "unloaded"
    monkeypatch.setattr(card_model.weights, "_load", load)
    assert "Paris" in roomy.call(ask(roomy.node, "smollm2"))
