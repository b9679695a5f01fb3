"""What may not depend on where it runs, or on what else runs: greedy tokens, vectors, stale memory."""

import asyncio
import random
from typing import Any

import numpy as np
import torch
from gpu_helpers import DEVICE, assert_same

from onecard.engines.api import EmbedRequest

LLAMA = {"model": "smollm2-135m"}


def prompts_of(lengths: list[int], seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(10, 500) for _ in range(length)] for length in lengths]


MIXED = [1 + (37 * i) % 180 for i in range(8 if DEVICE == "cpu" else 64)]
NEW = 6 if DEVICE == "cpu" else 24


def test_greedy_tokens_are_the_cpus(serve: Any) -> None:
    prompts = prompts_of([1, 3, 16, 17, 64, 100, 150, 33], seed=1)
    with serve(LLAMA) as served:
        got = served.generate(prompts, NEW)
    with serve(LLAMA, device="cpu", memory=2 << 30) as served:
        assert_same(got, served.generate(prompts, NEW))


def test_a_qwen3_too(serve: Any) -> None:
    """Heads of 128, two to a K/V head, normed queries and keys; bytes of the CPU's run in float32."""
    prompts = prompts_of([5, 40, 129], seed=2)
    model = {"model": "qwen3-0.6b"}
    with serve(model) as served:
        got = served.generate(prompts, 8)
    with serve(model, device="cpu", memory=6 << 30) as served:
        assert_same(got, served.generate(prompts, 8))


def test_a_batch_of_mixed_lengths_equals_each_alone(serve: Any) -> None:
    prompts = prompts_of(MIXED, seed=3)
    with serve(LLAMA, enable_prefix_caching=False) as served:
        together = served.generate(prompts, NEW)
        assert max(step.num_running for step in served.live.stats.steps) >= len(prompts) // 2
        alone = [served.generate([prompt], NEW)[0] for prompt in prompts]
    assert_same(together, alone)


def test_prefix_caching_changes_no_token(serve: Any) -> None:
    prefix = prompts_of([120], seed=4)[0]
    prompts = [[*prefix, *tail] for tail in prompts_of([3, 9, 30], seed=5)]
    results = []
    for caching in (False, True):
        with serve(LLAMA, enable_prefix_caching=caching) as served:
            first = [served.generate([prompt], NEW)[0] for prompt in prompts]
            again = served.generate(prompts, NEW)
            hits = sum(step.prefix_hits for step in served.live.stats.steps)
            assert (hits > 0) == caching
            results += [first, again]
    for other in results[1:]:
        assert_same(other, results[0])


def test_preemption_changes_no_token(serve: Any) -> None:
    prompts = prompts_of([40] * 8, seed=6)
    with serve(LLAMA) as served:
        expected = served.generate(prompts, 40)
        assert served.preemptions == 0
    # Eight answers of 80 tokens want 640; `max_model_len` of them must fit in any case.
    with serve(LLAMA, arena_tokens=360, max_model_len=128) as served:
        got = served.generate(prompts, 40)
        assert served.preemptions > 0
    assert_same(got, expected)


def test_pages_full_of_nan_go_from_one_precision_to_the_other(serve: Any) -> None:
    """Two engines take turns in an arena too small for both, which starts out as NaN in every dtype."""
    models = {"wide": "smollm2-135m", "narrow": "smollm2-135m"}
    dtypes = {"wide": "float32", "narrow": "bfloat16"}
    prompts = prompts_of([60, 60, 60, 61], seed=7)
    with serve(models, dtypes=dtypes, enable_prefix_caching=False) as served:
        expected = {name: served.generate(prompts, NEW, name) for name in models}
    with serve(models, dtypes=dtypes, arena_tokens=400, max_model_len=128) as served:
        (card,) = served.live.node._cards
        lent = card.arena.tensor[max(m.home.stop for m in card.plan.models) * card.arena.page_bytes :]
        lent.fill_(0xFF)  # what isn't weights
        assert lent[: 1 << 10].view(torch.bfloat16).isnan().all()
        for turn in range(4):
            name = ("wide", "narrow")[turn % 2]
            fresh = prompts if turn < 2 else prompts_of([90, 91, 92], seed=turn)
            got = served.generate(fresh, NEW, name)
            assert all(np.isfinite(token.lead) for answer in got for token in answer)
            if name == "wide" and turn < 2:
                assert_same(got, expected[name])
        card.pool.check_integrity()


def test_vectors_in_bfloat16_stay_close(serve: Any) -> None:
    texts = tuple(tuple(prompt) for prompt in prompts_of([1, 7, 63, 64, 65, 128, 500, 511], seed=8))

    def vectors(served: Any) -> np.ndarray:
        async def embed() -> Any:
            return await served.live.node.engine("model").embed(
                EmbedRequest("e", texts, add_special_tokens=False)
            )

        return served.live.call(embed()).vectors

    model = {"model": "minilm"}
    with serve(model, device="cpu", memory=1 << 30) as served:
        expected = vectors(served)
    with serve(model) as served:
        np.testing.assert_allclose(vectors(served), expected, atol=2e-4, rtol=2e-3)
    with serve(model, dtypes={"model": "bfloat16"}) as served:
        got = vectors(served)
    lengths = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((got * expected).sum(1) / lengths).min() > 0.998


def test_sampling_takes_the_cpus_tokens(serve: Any) -> None:
    """The same seed, the same random numbers, the same logits within noise: nearly all tokens agree."""
    from onecard.engines.api import GenerateRequest, SamplingParams

    def sample(served: Any) -> list[int]:
        engine = served.live.node.engine("model")

        async def one(seed: int) -> list[int]:
            params = SamplingParams(
                temperature=0.8, top_p=0.9, top_k=40, min_p=0.01, seed=seed, max_tokens=1, ignore_eos=True
            )
            prompt = tuple(prompts_of([20], seed=seed)[0])
            stream = await engine.generate(GenerateRequest("s", prompt, params))
            return [token async for chunk in stream for token in chunk.token_ids]

        async def all_of_them() -> list[list[int]]:
            return await asyncio.gather(*(one(seed) for seed in range(32)))

        return [token for tokens in served.live.call(all_of_them()) for token in tokens]

    with serve(LLAMA) as served:
        got = sample(served)
    with serve(LLAMA, device="cpu", memory=2 << 30) as served:
        expected = sample(served)
    assert sum(a == b for a, b in zip(got, expected, strict=True)) >= 31
