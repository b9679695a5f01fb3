"""The real model: vectors as sentence-transformers computes them, alone and in company."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onecard.engines.api import EmbedRequest, ModelInfo
from onecard.engines.kinds.embedding import EmbeddingEngine
from onecard.engines.models.config import EncoderConfig
from onecard.engines.models.registry import load_config
from onecard.engines.oneshot.core import OneShotCore
from onecard.engines.oneshot.queue import TokenBudgetQueue
from onecard.engines.oneshot.sentence_config import load_sentence_config
from onecard.engines.runtime.gate import Gate
from onecard.engines.runtime.step_clock import HostStepClock
from onecard.engines.text.service import TextService
from onecard.engines.text.tokenizer import load_tokenizer
from onecard.engines.weights.loader import load_model

pytestmark = pytest.mark.weights

TEXTS = [
    "A cat sits on the mat.",
    "",
    "Wie wird das Wetter morgen in Zürich? 🤖 日本語",
    "Photosynthesis converts light into chemical energy. " * 12,
    "x",
    "SHOUTING and whispering, don't care — " * 60,
    "def f(x):\n    return x ** 2",
    "The quick brown fox jumps over the lazy dog. " * 5,
]


@pytest.fixture(scope="module")
def engine(minilm_path: Path, hand_driven_loop: Any) -> EmbeddingEngine:
    cpu = torch.device("cpu")
    sentence = load_sentence_config(minilm_path)
    config = load_config(minilm_path, "embedding")
    assert isinstance(config, EncoderConfig)
    model = load_model(minilm_path, config, cpu, "auto").model
    core = OneShotCore(
        "minilm",
        1.0,
        0,
        sentence.pooling,
        TokenBudgetQueue(1024, 16),
        512,
        cpu,
        HostStepClock(),
        hand_driven_loop.stats,
        hand_driven_loop.hand_out,
    )
    core.use(model)
    hand_driven_loop.core = core
    info = ModelInfo(
        "minilm", "embedding", str(minilm_path), 0, sentence.max_seq_length or 512, frozenset({"embed"})
    )
    text = TextService(load_tokenizer(minilm_path), ThreadPoolExecutor(1))
    return EmbeddingEngine(
        info,
        core,
        hand_driven_loop,
        text,
        Gate("minilm"),
        config.hidden_size,
        sentences=sentence,
    )


@pytest.fixture(scope="module")
def reference(minilm_path: Path) -> np.ndarray:
    """Each text by itself, so that nothing is padded."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(minilm_path), device="cpu")
    return np.stack([model.encode(text) for text in TEXTS])


async def embed(engine: EmbeddingEngine, loop: Any, *inputs: tuple[str, ...]) -> list[np.ndarray]:
    requests = [EmbedRequest("r", texts, truncate_prompt_tokens=-1) for texts in inputs]
    tasks = [asyncio.create_task(engine.embed(request)) for request in requests]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0.001)
        loop.run()
    return [task.result().vectors for task in tasks]


async def test_alone(engine: EmbeddingEngine, hand_driven_loop: Any, reference: np.ndarray) -> None:
    for text, expected in zip(TEXTS, reference):
        (vectors,) = await embed(engine, hand_driven_loop, (text,))
        np.testing.assert_allclose(vectors[0], expected, atol=1e-5)


async def test_batched_with_others(
    engine: EmbeddingEngine, hand_driven_loop: Any, reference: np.ndarray
) -> None:
    first, second, *singles = await embed(
        engine, hand_driven_loop, tuple(TEXTS), tuple(reversed(TEXTS)), *((text,) for text in TEXTS)
    )
    np.testing.assert_allclose(first, reference, atol=1e-5)
    np.testing.assert_allclose(second[::-1], reference, atol=1e-5)
    np.testing.assert_allclose(np.concatenate(singles), reference, atol=1e-5)


async def test_vectors_are_unit_length(engine: EmbeddingEngine, hand_driven_loop: Any) -> None:
    (vectors,) = await embed(engine, hand_driven_loop, tuple(TEXTS))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
