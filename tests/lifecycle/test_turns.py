"""Two models that don't fit together, on a real node: turns, and how long somebody waits for one."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from lifecycle_helpers import ask, states

from onecard.engines.api import EngineError, GenerateRequest, ModelUnavailableError, SamplingParams
from onecard.engines.lifecycle import manager
from onecard.engines.weights.loader import load_model

pytestmark = pytest.mark.weights

MIB = 1 << 20


@pytest.fixture(scope="module")
def small(card_of) -> Iterator[Any]:
    """A card that holds one of its two models."""
    with card_of(1000 * MIB, a={}, b={"preload": False}) as live:
        yield live


@pytest.fixture
def live(small: Any) -> Iterator[Any]:
    """`a` is awake at first, and everything is in order at the end."""
    small.call(small.node.wake("a"))
    yield small
    small.wait_idle()
    small.on_loop(small.node.engine("a"), small.node._cards[0].pool.check_integrity)


def with_timeout(live: Any, seconds: float) -> Any:
    registry = live.node._registry
    return replace(registry, server=replace(registry.server, wake_timeout=seconds))


async def begin(node: Any, name: str) -> Any:
    """A request that keeps the model busy until it is aborted."""
    sampling = SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True)
    stream = await node.engine(name).generate(GenerateRequest("long", "Once upon a time", sampling))
    await anext(stream)
    return stream


async def until_closed(live: Any, name: str) -> None:
    async with asyncio.timeout(30):
        while states(live)[name] == "ready":
            await asyncio.sleep(0.005)


def test_two_models_under_steady_traffic_have_their_turns(live, monkeypatch):
    """Neither is ever idle, so each has to be made to finish, again and again; every request is answered."""
    monkeypatch.setattr(manager, "PATIENCE_SECONDS", 0.2)
    node, lengths = live.node, (7, 12, 18)
    texts = {tokens: live.call(ask(node, "a", tokens=tokens)) for tokens in lengths}
    turns = ["a"]

    async def client(name: str, tokens: int) -> None:
        while len(turns) < 6:
            assert await ask(node, name, tokens=tokens) == texts[tokens]
            if turns[-1] != name:
                turns.append(name)

    async def traffic() -> None:
        async with asyncio.timeout(120), asyncio.TaskGroup() as clients:
            for name in "ab":
                for tokens in lengths:
                    clients.create_task(client(name, tokens))

    live.call(traffic())


def test_the_registrys_timeout_bounds_requests_and_operators_alike(live, monkeypatch):
    monkeypatch.setattr(manager, "PATIENCE_SECONDS", 0.0)
    node, base = live.node, live.node._registry
    text = live.call(ask(node, "a"))

    async def too_long() -> list[Any]:
        busy = await begin(node, "a")
        try:
            waits = (ask(node, "b"), node.wake("b"))
            return await asyncio.gather(*waits, return_exceptions=True)
        finally:
            busy.abort()

    report = live.call(node.apply(with_timeout(live, 0.1), {}))
    assert report.notes == ()
    for error in live.call(too_long()):
        assert isinstance(error, ModelUnavailableError)
        assert error.message == (
            "The model `b` could not be woken within 0.1 s: `a` is still busy with requests it has accepted. "
            "Try again later."
        )
    live.call(node.apply(base, {}))
    assert live.call(ask(node, "b")) == text
    assert states(live) == {"a": "asleep", "b": "ready"}


def test_what_waits_at_a_gate_that_was_closed_for_nobody_goes_on(live, monkeypatch):
    monkeypatch.setattr(manager, "PATIENCE_SECONDS", 0.0)
    node = live.node
    text = live.call(ask(node, "a"))

    async def hang_up() -> str:
        busy = await begin(node, "a")
        wanted = await node.engine("b").generate(GenerateRequest("r", "Hello"))
        await until_closed(live, "a")
        queued = asyncio.create_task(ask(node, "a"))
        await asyncio.sleep(0.05)
        wanted.abort()
        answer = await queued
        assert not busy.done, "it went on beside the one that was waiting"
        busy.abort()
        return answer

    assert live.call(hang_up()) == text
    assert states(live)["a"] == "ready"
    assert live.node.is_sleeping("b")


def test_a_failed_model_that_is_long_in_coming_back_keeps_no_operator(live, monkeypatch):
    node, base = live.node, live.node._registry
    may_load = threading.Event()

    def broken(*_: object) -> None:
        raise RuntimeError("injected")

    def slow(*arguments: Any) -> Any:
        assert may_load.wait(60)
        return load_model(*arguments)

    async def fail() -> None:
        while states(live)["a"] != "failed":
            with pytest.raises(EngineError, match="failed"):
                await ask(node, "a")

    monkeypatch.setattr(node.engine("a").core._runner, "launch", broken)
    live.call(fail())
    monkeypatch.setattr("onecard.engines.paged.build.load_model", slow)
    live.call(node.apply(with_timeout(live, 0.2), {}))
    with pytest.raises(ModelUnavailableError, match="`a` could not be woken within"):
        live.call(node.wake("a"))
    may_load.set()
    live.call(node.apply(base, {}))  # after the wake, which goes on
    assert states(live)["a"] == "ready"
    assert live.call(ask(node, "a"))
