"""Puts an embedding model's engine together: files -> model -> queue -> engine."""

import time
from collections.abc import Callable
from pathlib import Path

from onecard.engines.api import ModelInfo
from onecard.engines.encoder.core import EncoderCore
from onecard.engines.encoder.engine import EncoderEngine
from onecard.engines.encoder.queue import TokenBudgetQueue
from onecard.engines.encoder.sentence_config import SentenceConfig, load_sentence_config
from onecard.engines.models.config import EncoderConfig
from onecard.engines.runtime.card_handle import CardHandle
from onecard.engines.step_size import step_size
from onecard.engines.text.service import TextService
from onecard.engines.text.tokenizer import load_tokenizer
from onecard.engines.weights.loader import LoadedModel, load_model
from onecard.registry.spec import ModelSpec


def max_model_len(spec: ModelSpec, config: EncoderConfig, sentences: SentenceConfig) -> int:
    """The shortest of what the registry asks, what the model's makers advise, and what its positions
    allow."""
    limits = (spec.engine.max_model_len, sentences.max_seq_length, config.max_text_len)
    return min(limit for limit in limits if limit is not None)


def build_encoder(
    spec: ModelSpec,
    config: EncoderConfig,
    path: Path,
    card: CardHandle,
    progress: Callable[[int, int], None] | None,
) -> tuple[EncoderEngine, LoadedModel]:
    """Load the model. Blocks while the weights load."""
    sentences = load_sentence_config(path)
    folder = sentences.transformer_path
    loaded = load_model(folder, config, card.device, spec.engine.dtype, progress=progress)
    tokenizer = load_tokenizer(
        Path(spec.engine.tokenizer) if spec.engine.tokenizer else folder, lowercase=sentences.do_lower_case
    )
    longest = max_model_len(spec, config, sentences)
    size = step_size(spec, card.device.type, longest)
    core = EncoderCore(
        spec.name,
        loaded.model,
        sentences.pooling,
        TokenBudgetQueue(size.max_num_batched_tokens, size.max_num_seqs),
        card.device,
        card.clock,
        card.stats,
        spec.weight,
        spec.priority,
    )
    engine = EncoderEngine(
        info=ModelInfo(
            name=spec.name,
            kind=spec.kind,
            root=spec.source,
            created=int(time.time()),
            max_model_len=longest,
            aliases=spec.aliases,
        ),
        core=core,
        loop=card.loop,
        text=TextService(tokenizer, card.executor),
        config=sentences,
        dimensions=config.hidden_size,
        stats=card.stats,
    )
    card.loop.add_engine(core)
    return engine, loaded
