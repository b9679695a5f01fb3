"""Puts an embedding model's engine together: files -> queue -> engine; weights come later."""

import time
from functools import partial
from pathlib import Path

import torch

from onecard.engines.api import ModelInfo
from onecard.engines.lifecycle.attach import Placement
from onecard.engines.lifecycle.card_model import CardModel
from onecard.engines.models.config import EncoderConfig
from onecard.engines.oneshot.core import OneShotCore
from onecard.engines.oneshot.engine import EmbeddingEngine
from onecard.engines.oneshot.hooks import OneShotHooks
from onecard.engines.oneshot.queue import TokenBudgetQueue
from onecard.engines.oneshot.sentence_config import SentenceConfig, load_sentence_config
from onecard.engines.oneshot.warm_up import WarmUp
from onecard.engines.step.step_size import step_size
from onecard.engines.text.service import TextService
from onecard.engines.text.tokenizer import load_tokenizer
from onecard.engines.weights.allocator import WeightAllocator
from onecard.engines.weights.loader import LoadedModel, Progress, load_model
from onecard.registry.spec import ModelSpec


def max_model_len(spec: ModelSpec, config: EncoderConfig, sentences: SentenceConfig) -> int:
    """The shortest of what the registry asks, what the model's makers advise, and what its positions
    allow."""
    limits = (spec.engine.max_model_len, sentences.max_seq_length, config.max_text_len)
    return min(limit for limit in limits if limit is not None)


def build_encoder(
    spec: ModelSpec, config: EncoderConfig, path: Path, place: Placement
) -> tuple[EmbeddingEngine, CardModel]:
    """The engine, not yet known to its card, and the card_model that brings in its weights."""
    card = place.card
    sentences = load_sentence_config(path)
    folder = sentences.transformer_path
    tokenizer = load_tokenizer(
        Path(spec.engine.tokenizer) if spec.engine.tokenizer else folder, lowercase=sentences.do_lower_case
    )
    longest = max_model_len(spec, config, sentences)
    size = step_size(spec, card.device.type, longest)
    core = OneShotCore(
        spec.name,
        None,
        sentences.pooling,
        TokenBudgetQueue(size.max_num_batched_tokens, size.max_num_seqs),
        card.device,
        card.clock,
        card.stats,
        card.loop.deliver,
        spec.weight,
        spec.priority,
    )
    warm_up = WarmUp(core, size, config.vocab_size, longest, config.hidden_size, card.device.type == "cpu")
    hooks = OneShotHooks(core, card.device, place.share.workspace_bytes, warm_up if place.warm_up else None)
    engine = EmbeddingEngine(
        info=ModelInfo(
            name=spec.name,
            kind=spec.kind,
            root=spec.source,
            created=int(time.time()),
            max_model_len=longest,
            tasks=frozenset({"embed"}),
            aliases=spec.aliases,
        ),
        core=core,
        loop=card.loop,
        text=TextService(tokenizer, card.executor),
        config=sentences,
        dimensions=config.hidden_size,
        gate=place.gate,
        stats=card.stats,
    )
    load = partial(_load, spec, config, folder, card.device)
    return engine, place.card_model(spec, load, core, hooks)


def _load(
    spec: ModelSpec,
    config: EncoderConfig,
    folder: Path,
    device: torch.device,
    memory: WeightAllocator,
    progress: Progress | None,
) -> LoadedModel:
    return load_model(folder, config, device, spec.engine.dtype, memory, progress)
