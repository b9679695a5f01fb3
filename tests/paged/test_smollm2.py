"""The whole engine on real weights, against transformers on the same ones."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from onecard.engines.api import ChatPrompt, GenerateRequest, InvalidRequestError, SamplingParams

pytestmark = pytest.mark.weights

QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain photosynthesis in one sentence.",
    "List three primes.",
    "Translate 'good morning' into Spanish.",
    "Who wrote Hamlet?",
    "What is 12 times 12?",
    "Name a planet with rings.",
    "Give me a recipe for pancakes.",
    "Why is the sky blue?",
    "Write a Python function that adds two numbers.",
    "What does DNA stand for?",
    "Tell me a joke.",
    "How do magnets work?",
    "Summarise the story of Cinderella.",
    "What is the largest ocean?",
    "Describe a cat to an alien.",
    "Which year did the first man walk on the moon?",
    "What are the colours of the rainbow?",
    "Write a short poem about winter.",
]


async def answer(engine, prompt, **params) -> tuple[list[int], list[int], str]:
    """Prompt ids, answer ids, text."""
    messages = (
        ChatPrompt(({"role": "user", "content": prompt},)) if isinstance(prompt, str) else tuple(prompt)
    )
    sampling = SamplingParams(**{"temperature": 0.0, "max_tokens": 64, **params})
    stream = await engine.generate(GenerateRequest("r", messages, sampling))
    ids: list[int] = []
    text = ""
    async for chunk in stream:
        ids += chunk.token_ids
        text += chunk.text
    return list(stream.prompt_token_ids), ids, text


async def answers(engine, prompts, **params) -> list[tuple[list[int], list[int], str]]:
    return await asyncio.gather(*(answer(engine, prompt, **params) for prompt in prompts))


@pytest.fixture(scope="module")
def reference(smollm2_path: Path) -> Callable[[list[int]], torch.Tensor]:
    """transformers' logits `[T, V]` for token ids, on the same dequantised weights in float32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        str(smollm2_path.parent), gguf_file=smollm2_path.name, dtype=torch.float32
    ).eval()

    @torch.inference_mode()
    def logits(token_ids: list[int]) -> torch.Tensor:
        return model(torch.tensor([token_ids])).logits[0]

    return logits


def check_greedy(reference, prompt: list[int], answer_ids: list[int], noise: float) -> int:
    """Every token is the reference's first choice, or as good as it within numeric noise; counts the
    latter."""
    logits = reference(prompt + answer_ids)[len(prompt) - 1 : -1]
    ties = 0
    for row, token in zip(logits, answer_ids, strict=True):
        best = int(row.argmax())
        if best != token:
            ties += 1
            assert float(row[best] - row[token]) < noise
    return ties


def test_a_default_of_max_tokens_gives_way_to_requests_and_to_the_context(demo_node, monkeypatch):
    engine = demo_node.node.engine("smollm2")
    info = replace(engine.info, default_sampling={"max_tokens": 4}, max_model_len=50)
    monkeypatch.setattr(engine, "info", info)

    def length(prompt, **params) -> int:
        params = {"max_tokens": None, "ignore_eos": True, **params}
        return len(demo_node.call(answer(engine, prompt, **params))[1])

    assert length([1] * 30) == 4
    assert length([1] * 30, max_tokens=6) == 6
    assert length([1] * 30, min_tokens=5) == 5
    assert length([1] * 48) == 2


def test_greedy_text_is_transformers_alone_and_in_one_batch(demo_node, reference):
    engine = demo_node.node.engine("smollm2")
    batched = demo_node.call(answers(engine, QUESTIONS))
    assert max(step.num_running for step in demo_node.stats.steps) >= len(QUESTIONS) // 2
    for prompt, ids, _ in batched:
        assert check_greedy(reference, prompt, ids, noise=2e-4) <= 1
    for question, (prompt, ids, text) in zip(QUESTIONS, batched, strict=True):
        alone = demo_node.call(answer(engine, question))
        if alone[1] != ids:  # a tie within numeric noise may fall either way; both must be greedy
            check_greedy(reference, prompt, alone[1], noise=2e-4)
        else:
            assert alone[2] == text


def test_half_precision_weights_stay_within_their_rounding(live_node, reference):
    with live_node(dtype="auto", max_model_len=2048) as live:
        results = live.call(answers(live.node.engine("smollm2"), QUESTIONS[:8]))
    for prompt, ids, _ in results:
        check_greedy(reference, prompt, ids, noise=0.05)


def test_a_shared_prefix_is_computed_once(demo_node):
    engine = demo_node.node.engine("smollm2")
    rng = random.Random(1)
    prefix = [rng.randrange(1000, 40000) for _ in range(1000)]
    stats = demo_node.stats
    stats.steps.clear()
    stats.requests.clear()

    async def ask(i: int) -> int:
        stream = await engine.generate(
            GenerateRequest(f"p{i}", (*prefix, i), SamplingParams(temperature=0.0, max_tokens=2))
        )
        async for _ in stream:
            pass
        return stream.cached_tokens

    async def ask_all() -> list[int]:
        return await asyncio.gather(*(ask(i) for i in range(8)))

    cached = demo_node.call(ask_all())
    assert sorted(cached) == [0] + [992] * 7
    assert sum(s.prefix_hits for s in stats.steps) == 7 * 992
    assert sum(s.prefix_queries for s in stats.steps) == 8 * 1001
    assert sum(r.cached_tokens for r in stats.requests) == 7 * 992


def test_the_same_seed_gives_the_same_text_whatever_else_is_in_the_batch(demo_node):
    engine = demo_node.node.engine("smollm2")
    params = {"temperature": 0.9, "top_p": 0.95, "top_k": 50, "seed": 11, "max_tokens": 40}
    alone = demo_node.call(answer(engine, QUESTIONS[1], **params))

    async def crowded():
        others = [answer(engine, q, temperature=1.2, max_tokens=50) for q in QUESTIONS[2:9]]
        return (await asyncio.gather(answer(engine, QUESTIONS[1], **params), *others))[0]

    assert demo_node.call(crowded()) == alone
    other_seed = demo_node.call(answer(engine, QUESTIONS[1], **{**params, "seed": 12}))
    assert other_seed[1] != alone[1]


def test_n_answers_differ_and_share_the_prompt(demo_node):
    engine = demo_node.node.engine("smollm2")

    async def ask() -> tuple[dict[int, str], int]:
        sampling = SamplingParams(n=3, temperature=1.0, seed=5, max_tokens=20)
        stream = await engine.generate(GenerateRequest("n", "Once upon a time", sampling))
        texts = {0: "", 1: "", 2: ""}
        async for chunk in stream:
            texts[chunk.index] += chunk.text
        return texts, stream.completion_tokens

    texts, tokens = demo_node.call(ask())
    assert len(set(texts.values())) == 3
    assert tokens <= 60


def test_logprobs_are_the_references(demo_node, reference):
    engine = demo_node.node.engine("smollm2")

    async def ask():
        sampling = SamplingParams(temperature=0.0, max_tokens=6, logprobs=4, prompt_logprobs=2)
        stream = await engine.generate(GenerateRequest("l", "The quick brown fox jumps", sampling))
        chunks = [chunk async for chunk in stream]
        return stream, chunks

    stream, chunks = demo_node.call(ask())
    prompt = list(stream.prompt_token_ids)
    ids = [token for chunk in chunks for token in chunk.token_ids]
    expected = torch.log_softmax(reference(prompt + ids).double(), -1)
    assert stream.prompt_logprobs[0] is None
    for position, entry in enumerate(stream.prompt_logprobs[1:], start=1):
        assert entry.token_id == prompt[position]
        assert entry.logprob == pytest.approx(float(expected[position - 1, entry.token_id]), abs=1e-3)
        assert len(entry.top) == 2
    for i, chunk in enumerate(chunks):
        row = expected[len(prompt) - 1 + i]
        assert chunk.logprobs[0].logprob == pytest.approx(float(row[ids[i]]), abs=1e-3)
        assert [t.token_id for t in chunk.logprobs[0].top] == row.topk(4).indices.tolist()


def test_limits_and_penalties(demo_node):
    engine = demo_node.node.engine("smollm2")
    plain = demo_node.call(answer(engine, QUESTIONS[0], max_tokens=20))
    assert plain[1][-1] in engine._eos_token_ids
    longer = demo_node.call(answer(engine, QUESTIONS[0], max_tokens=20, min_tokens=15))
    assert len(longer[1]) >= 15
    ignoring = demo_node.call(answer(engine, QUESTIONS[0], max_tokens=20, ignore_eos=True))
    assert len(ignoring[1]) == 20
    stopped = demo_node.call(answer(engine, QUESTIONS[0], stop=(" France",)))
    assert stopped[2] == plain[2].split(" France")[0]
    banned = demo_node.call(answer(engine, QUESTIONS[0], max_tokens=5, logit_bias=((plain[1][0], -100.0),)))
    assert banned[1][0] != plain[1][0]
    repeating = demo_node.call(
        answer(engine, QUESTIONS[12], frequency_penalty=2.0, max_tokens=60, ignore_eos=True)
    )
    free = demo_node.call(answer(engine, QUESTIONS[12], max_tokens=60, ignore_eos=True))
    assert len(set(repeating[1])) > len(set(free[1]))


def test_bad_token_ids_are_refused(demo_node):
    engine = demo_node.node.engine("smollm2")
    with pytest.raises(InvalidRequestError, match="vocabulary"):
        demo_node.call(answer(engine, [1, 10**7]))
    with pytest.raises(InvalidRequestError) as refused:
        demo_node.call(engine.detokenize([10**7]))
    assert refused.value.param == "tokens"


def test_what_the_context_cannot_hold_is_refused_in_words_of_the_request(demo_node):
    engine = demo_node.node.engine("smollm2")
    limit = engine.info.max_model_len
    with pytest.raises(InvalidRequestError, match=r"`min_tokens` is .* the context leaves") as refused:
        demo_node.call(answer(engine, QUESTIONS[0], min_tokens=limit, max_tokens=None))
    assert refused.value.param == "min_tokens"
    for prompt, param in ((tuple([100] * limit), "prompt"), (QUESTIONS[0], "messages")):
        with pytest.raises(
            InvalidRequestError, match=f"in the {param}, .*length of the {param} or"
        ) as refused:
            demo_node.call(answer(engine, prompt, max_tokens=limit))
        assert refused.value.param == param


def test_a_prompt_whose_answer_ends_at_once_is_cached(demo_node):
    engine = demo_node.node.engine("smollm2")
    size = engine.core.scheduler.kv.block_size
    prompt = tuple(range(300, 300 + 2 * size))

    async def cached_tokens(prompt: tuple[int, ...], max_tokens: int) -> tuple[int, tuple[int, ...]]:
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        stream = await engine.generate(GenerateRequest("c", prompt, sampling))
        tokens = [token async for chunk in stream for token in chunk.token_ids]
        return stream.cached_tokens, (*prompt, *tokens)

    cached, whole = demo_node.call(cached_tokens(prompt, 1))
    assert cached == 0
    cached, longer = demo_node.call(cached_tokens(whole, size))
    assert cached == 2 * size
    # The last step of that answer has filled a third block.
    assert demo_node.call(cached_tokens(longer, 1))[0] == 3 * size


def test_truncation_to_the_context_leaves_room_for_the_answer(demo_node):
    engine = demo_node.node.engine("smollm2")
    limit = engine.info.max_model_len
    long = tuple(range(100, 100 + limit + 88))

    async def prompt_of(max_tokens: int | None, keep: int = -1) -> tuple[int, ...]:
        request = GenerateRequest(
            "r", long, SamplingParams(temperature=0.0, max_tokens=max_tokens), truncate_prompt_tokens=keep
        )
        stream = await engine.generate(request)
        stream.abort()
        return tuple(stream.prompt_token_ids)

    assert demo_node.call(prompt_of(20)) == long[20 - limit :]
    assert demo_node.call(prompt_of(None)) == long[1 - limit :]
    assert demo_node.call(prompt_of(20, keep=3)) == long[-3:]
    with pytest.raises(InvalidRequestError, match=f"it may be 1 to {limit}, or -1") as refused:
        demo_node.call(prompt_of(20, keep=limit + 1))
    assert refused.value.param == "truncate_prompt_tokens"
    with pytest.raises(InvalidRequestError, match="maximum context length"):
        demo_node.call(prompt_of(limit))


def test_16_requests_finish_with_the_right_text_in_an_arena_too_small_for_them(live_node, demo_node):
    prompts = [f"Count from {i} to {i + 30}, with commas." for i in range(16)]
    params = {"max_tokens": 48, "ignore_eos": True}
    right = demo_node.call(answers(demo_node.node.engine("smollm2"), prompts, **params))
    # 16 sequences of about 90 tokens want 96 blocks; this arena holds about 55.
    with live_node(
        memory=808 << 20,
        dtype="float32",
        max_model_len=512,
        max_num_seqs=16,
        max_num_batched_tokens=256,
    ) as live:
        engine = live.node.engine("smollm2")
        pool = engine.core.scheduler.kv.pool
        assert pool.max_blocks < 90
        results = live.call(answers(engine, prompts, **params))
        assert sum(step.preemptions for step in live.stats.steps) > 0
        assert [r[1] for r in results] == [r[1] for r in right]
        assert all_pages_free(live, engine)


def test_no_page_is_lost_when_200_requests_hang_up_at_random(live_node):
    rng = random.Random(7)

    async def ask_and_leave(engine, i: int) -> None:
        stream = await engine.generate(
            GenerateRequest(f"c{i}", f"Story {i % 9} about a dog", SamplingParams(seed=i, max_tokens=60))
        )
        try:
            async with asyncio.timeout(rng.random() * 1.5):
                async for _ in stream:
                    pass
        except TimeoutError:
            pass
        finally:
            stream.abort()

    async def flood(engine) -> None:
        for start in range(0, 200, 40):
            await asyncio.gather(*(ask_and_leave(engine, start + i) for i in range(40)))

    with live_node(dtype="auto", max_model_len=512, max_num_seqs=32, memory=720 << 20) as live:
        engine = live.node.engine("smollm2")
        live.call(flood(engine))
        assert all_pages_free(live, engine)
        live.call(asyncio.sleep(0.1))
        assert any(r.finish_reason == "abort" for r in live.stats.requests)
        assert len(live.stats.requests) == 200


def all_pages_free(live, engine) -> bool:
    """Once nothing runs: intact books, and no page is owned when the cache is dropped."""
    live.call(live.node.drained())
    pool = engine.core.scheduler.kv.pool
    pool.check_integrity()
    pool.reset_prefix_cache()
    pool.release_idle_pages()
    pages = live.node._cards[0].pool
    return pages.owned(engine.info.name) == 0 and pages.free_pages + pages.home_pages == pages.num_pages
