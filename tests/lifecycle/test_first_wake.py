"""The first steps of a model that wakes up beside others on a real node: they keep nobody waiting long."""

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from lifecycle_helpers import ask

from onecard.engines.api import GenerateRequest, SamplingParams

pytestmark = pytest.mark.weights

MIB = 1 << 20


@pytest.fixture(scope="module")
def live(card_of) -> Iterator[Any]:
    """`a` is awake; `b` and the embedding model have never been."""
    with card_of(1800 * MIB, warm_up=True, a={}, b={"preload": False}, minilm={"preload": False}) as live:
        yield live


def watch(live: Any, name: str, steps: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes every step of the model that is launched."""
    core = live.node.engine(name).core
    launch = core.launch

    def noted(seconds: float | None = None) -> Any:
        step = launch(seconds)
        if step is not None:
            steps.append(name)
        return step

    monkeypatch.setattr(core, "launch", noted)


@pytest.mark.parametrize("name", ["b", "minilm"])
def test_others_go_on_between_the_first_steps(live, name, monkeypatch):
    steps: list[str] = []
    for each in ("a", name):
        watch(live, each, steps, monkeypatch)

    async def wake_beside_a_stream() -> None:
        sampling = SamplingParams(temperature=0.0, max_tokens=230, ignore_eos=True)
        stream = await live.node.engine("a").generate(GenerateRequest("r", "Hello", sampling))
        await anext(stream)
        await live.node.wake(name)
        assert not stream.done
        stream.abort()

    live.call(wake_beside_a_stream())
    live.wait_idle()
    first, last = steps.index(name), len(steps) - steps[::-1].index(name)
    during = steps[first:last]
    assert during.count(name) > 5
    assert all({"a", name} == set(pair) for pair in pairwise(during) if name in pair)
    woken = next(model for model in live.node.status().models if model.name == name)
    assert woken.finished == 0, "first steps are nobody's requests"


def test_first_steps_count_as_nobodys_requests(card_of, monkeypatch):
    with card_of(1800 * MIB, warm_up=True, a={}, b={"preload": False}) as live:
        core, shown = live.node.engine("b").core, []
        launch = core.launch

        def noted(seconds: float | None = None) -> Any:
            step = launch(seconds)
            if core.warming and core.num_running:
                status = next(model for model in live.node.status().models if model.name == "b")
                shown.append((status.running, status.waiting))
            return step

        monkeypatch.setattr(core, "launch", noted)
        live.call(live.node.wake("b"))
    assert set(shown) == {(0, 1)}, "who waits is the one who wakes it"


def test_who_woke_up_answers(live):
    async def both() -> list[str]:
        return await asyncio.gather(*(ask(live.node, name) for name in "ab"))

    one, other = live.call(both())
    assert one == other
