"""Failing steps of real models, two on a card, one step in flight: survivors' answers are their lone ones."""

import asyncio
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from onecard.engines.api import (
    EmbedRequest,
    EngineFailedError,
    GenerateRequest,
    ModelUnavailableError,
    SamplingParams,
)
from onecard.engines.runtime.device_loop import MOST_FAILURES
from onecard.engines.runtime.step_clock import HostStepClock

pytestmark = pytest.mark.weights

PROMPTS = ("The capital of France is", "Once upon a time,", "def fibonacci(n):", "1, 2, 3, 4,") * 2
TEXTS = tuple(f"{word} and the {word}s" for word in ("sea", "sky", "moon", "star", "tree", "cat"))
GREEDY = SamplingParams(temperature=0.0, max_tokens=16, logprobs=1)


class LateClock(HostStepClock):
    asynchronous = True


@pytest.fixture(scope="module")
def live(live_node: Callable[..., Any]) -> Iterator[Any]:
    """A node on a card that computes behind the host's back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onecard.engines.node.factory.step_clock", lambda device: LateClock())
        with live_node(dtype="float32", max_model_len=512, memory=1 << 30) as node:
            yield node


async def complete(engine: Any, prompt: str) -> list[int]:
    stream = await engine.generate(GenerateRequest("r", prompt, GREEDY))
    return [token async for chunk in stream for token in chunk.token_ids]


async def embed(engine: Any) -> np.ndarray:
    return (await engine.embed(EmbedRequest("e", TEXTS))).vectors


@pytest.fixture(scope="module")
def lone(live: Any) -> tuple[dict[str, list[int]], np.ndarray]:
    """Every answer when nobody else is there."""
    llm, encoder = live.node.engine("smollm2"), live.node.engine("minilm")
    return {prompt: live.call(complete(llm, prompt)) for prompt in PROMPTS}, live.call(embed(encoder))


async def load(node: Any, embeddings: int) -> tuple[list[Any], list[Any]]:
    """All prompts at once, and embeddings beside them."""
    llm, encoder = node.node.engine("smollm2"), node.node.engine("minilm")
    answers = asyncio.gather(*(complete(llm, prompt) for prompt in PROMPTS), return_exceptions=True)
    vectors = asyncio.gather(*(embed(encoder) for _ in range(embeddings)), return_exceptions=True)
    return await answers, await vectors


def check_answers(lone: Any, answers: list[Any], vectors: list[Any]) -> tuple[int, int]:
    """Survivors' answers are right; how many others there are, of each kind."""
    texts, embedded = lone
    lost = [0, 0]
    for prompt, got in zip(PROMPTS, answers, strict=True):
        if isinstance(got, EngineFailedError):
            lost[0] += 1
        else:
            assert got == texts[prompt]
    for got in vectors:
        if isinstance(got, EngineFailedError):
            lost[1] += 1
        else:
            np.testing.assert_allclose(got, embedded, atol=1e-5)
    return lost[0], lost[1]


def check_whole(live: Any) -> None:
    live.wait_idle()
    llm = live.node.engine("smollm2")
    pool, pages = llm.core.scheduler.kv.pool, live.node._cards[0].pool

    def look() -> int:
        pool.check_integrity()
        pages.check_integrity()
        pool.reset_prefix_cache()
        pool.release_idle_pages()
        live.node.engine("minilm").core.idle()
        return len(pages.pages_of("smollm2"))

    assert pool.num_used_blocks == 0
    assert live.on_loop(llm, look) == 0


def faulty(run: Callable[..., Any], fault: Callable[[Any], str | None]) -> Callable[..., Any]:
    """`run`, which raises before or after it has done its work where `fault(argument)` names an error."""

    def maybe(argument: Any) -> Any:
        what = fault(argument) or ""
        error = (
            torch.OutOfMemoryError("CUDA out of memory.") if "memory" in what else RuntimeError("injected")
        )
        if what in ("memory", "step"):
            raise error
        result = run(argument)
        if what:
            raise error
        return result

    return maybe


def test_out_of_memory_loses_nobody(live, lone, monkeypatch):
    llm, encoder = live.node.engine("smollm2").core, live.node.engine("minilm").core
    monkeypatch.setattr(
        llm._runner,
        "launch",
        faulty(llm._runner.launch, lambda schedule: "memory after" if schedule.num_tokens > 5 else None),
    )
    monkeypatch.setattr(
        encoder, "model", faulty(encoder.model, lambda batch: "memory" if len(batch.input_ids) > 64 else None)
    )
    answers, vectors = live.call(load(live, 4))
    assert check_answers(lone, answers, vectors) == (0, 0)
    check_whole(live)


@pytest.mark.parametrize("seed", [1, 2])
def test_failing_steps_take_their_own_requests_only(live, lone, monkeypatch, seed):
    rng = random.Random(seed)
    llm, encoder = live.node.engine("smollm2").core, live.node.engine("minilm").core
    kinds, ran = ["step", "step after", "memory", "memory after"], [0, 0]

    def fault(which: int) -> Callable[[Any], str | None]:
        def choose(_: Any) -> str | None:
            ran[which] += 1  # every third step at most, so that no engine fails three times in a row
            return rng.choice(kinds) if ran[which] % 3 == 0 else None

        return choose

    monkeypatch.setattr(llm._runner, "launch", faulty(llm._runner.launch, fault(0)))
    monkeypatch.setattr(encoder, "model", faulty(encoder.model, fault(1)))
    survived = 0
    for _ in range(3):
        answers, vectors = live.call(load(live, 5))
        lost = check_answers(lone, answers, vectors)
        survived += len(PROMPTS) + 5 - sum(lost)
    assert survived
    check_whole(live)
    monkeypatch.undo()
    answers, vectors = live.call(load(live, 1))
    assert check_answers(lone, answers, vectors) == (0, 0), "all is well again"


def test_a_model_that_always_fails_is_taken_off_and_the_other_serves_on(live, lone, monkeypatch):
    engine, runner = live.node.engine("smollm2"), live.node.engine("smollm2").core._runner
    monkeypatch.setattr(runner, "launch", faulty(runner.launch, lambda _: "step after"))

    async def until_it_is_off() -> list[type]:
        """What became of requests, until one is told that the model is out of service."""
        fates: list[type] = []
        while ModelUnavailableError not in fates:
            (fate,) = await asyncio.gather(complete(engine, PROMPTS[0]), return_exceptions=True)
            fates.append(type(fate))
        return fates

    assert live.call(until_it_is_off()) == [EngineFailedError] * MOST_FAILURES + [ModelUnavailableError]
    live.wait_idle()
    answers, vectors = live.call(load(live, 3))
    assert [type(got) for got in answers] == [ModelUnavailableError] * len(PROMPTS)
    for got in vectors:
        np.testing.assert_allclose(got, lone[1], atol=1e-5)
    pages = live.node._cards[0].pool
    assert "smollm2" not in pages.engines or not pages.pages_of("smollm2")
    pages.check_integrity()

    monkeypatch.undo()
    live.call(live.node.wake("smollm2"))
    answers, vectors = live.call(load(live, 1))
    assert check_answers(lone, answers, vectors) == (0, 0), "it can come back"
    check_whole(live)
