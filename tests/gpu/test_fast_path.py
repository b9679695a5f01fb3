"""What makes it fast may change no token: graphs, overlapped steps, sleep; and nothing compiles late."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from gpu_helpers import DEVICE, assert_same
from test_engines_on_card import LLAMA, MIXED, NEW, prompts_of

ON_CARD = DEVICE == "cuda"


def test_graphs_and_eager_steps_give_the_same_tokens(serve: Any) -> None:
    prompts = prompts_of(MIXED, seed=11)
    with serve(LLAMA, max_num_seqs=64) as served:
        graphs = served.live.node.engine("model").core._runner.graphs
        assert (graphs is not None) == ON_CARD
        captured = [served.generate(prompts[:n], NEW) for n in (1, 3, 8, len(prompts))]
        plain = served.plain_tokens(prompts, NEW)
    with serve(LLAMA, max_num_seqs=64, enforce_eager=True) as served:
        assert served.live.node.engine("model").core._runner.graphs is None
        eager = [served.generate(prompts[:n], NEW) for n in (1, 3, 8, len(prompts))]
    for ours, theirs in zip(captured, eager, strict=True):
        assert_same(ours, theirs)
    expected = [[token.id for token in answer] for answer in eager[-1]]
    differing = sum(a != b for a, b in zip(plain, expected, strict=True))
    assert differing <= len(prompts) // 16  # near ties, as in assert_same


def test_graphs_of_two_models_share_a_card(serve: Any) -> None:
    prompts = prompts_of([5, 17, 40, 80], seed=12)
    models = {"one": "smollm2-135m", "two": "smollm2-135m"}
    with serve(models) as served:
        together = [served.generate(prompts, NEW, name) for name in ("one", "two", "one")]
    assert_same(together[0], together[1])
    assert_same(together[0], together[2])


@pytest.mark.parametrize("level", [1, 2])
def test_a_wake_brings_back_the_same_weights_under_the_same_graphs(serve: Any, level: int) -> None:
    prompts = prompts_of([3, 33, 64], seed=13)
    with serve({"model": "smollm2-135m", "other": "smollm2-135m"}) as served:
        before = served.generate(prompts, NEW)
        for _ in range(2):
            served.live.call(served.live.node.sleep("model", level))
            served.generate(prompts_of([200] * 6, seed=14), 30, "other")  # writes where the weights were
            served.live.call(served.live.node.wake("model"))
            assert_same(served.generate(prompts, NEW), before)


def test_the_largest_step_takes_no_more_than_was_planned(serve: Any) -> None:
    with serve({"model": "smollm2-135m", "minilm": "minilm"}, warm_up=True) as served:
        for name in ("model", "minilm"):
            card_model = served.live.node._models[name].card_model
            planned = served.live.node._cards[0].plan.model(name).workspace_bytes
            if ON_CARD:
                assert 0.2 * planned < card_model.hooks.peak_bytes <= planned
            else:
                assert card_model.hooks.peak_bytes is None


def test_nothing_is_compiled_once_a_model_is_warm(serve: Any) -> None:
    with serve(LLAMA, warm_up=True, max_num_seqs=64) as served, compilations() as compiled:
        for count, seed in ((1, 1), (2, 2), (7, 3), (len(MIXED), 4)):
            lengths = [1 + (53 * i * seed) % 250 for i in range(count)]
            served.generate(prompts_of(lengths, seed=20 + seed), 5)
            served.plain_tokens(prompts_of(lengths, seed=50 + seed), 5)
        served.generate(prompts_of([400], seed=30), 17)
    assert compiled == []


@contextmanager
def compilations() -> Iterator[list[str]]:
    """Names of the kernels that Triton compiles meanwhile; none without it."""
    names: list[str] = []
    if not ON_CARD:
        yield names
        return
    from onecard.kernels.compile_watch import watch_compilations

    with watch_compilations(names.append):
        yield names


def test_host_time_hides_behind_the_cards(serve: Any) -> None:
    """While one request decodes the card waits for the host in less than a fifth of the time."""
    if not ON_CARD:
        pytest.skip("a CPU computes while it launches")
    with serve({"model": "qwen3-0.6b"}, dtypes={"model": "bfloat16"}, warm_up=True) as served:
        served.plain_tokens(prompts_of([32], seed=40), 20)
        served.live.stats.steps.clear()
        served.plain_tokens(prompts_of([32], seed=41), 120)
        steps = served.live.stats.steps[5:-2]
        device, gap = sum(s.device_seconds for s in steps), sum(s.gap_seconds for s in steps)
        assert gap < 0.2 * (device + gap)
