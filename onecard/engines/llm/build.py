"""Puts a language model's engine together: files -> model -> pools -> scheduler -> engine."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from onecard.engines.api import ModelInfo
from onecard.engines.llm.core import LLMCore
from onecard.engines.llm.decode_graphs import DecodeGraphs, default_sizes
from onecard.engines.llm.engine import LLMEngine
from onecard.engines.llm.kv_cache_manager import KVCacheManager
from onecard.engines.llm.rows import RequestRows
from onecard.engines.llm.runner import ModelRunner
from onecard.engines.llm.scheduler import Scheduler, SchedulerLimits
from onecard.engines.memory.block_pool import BlockPool
from onecard.engines.memory.kv_layout import KVLayout
from onecard.engines.models.config import DecoderConfig
from onecard.engines.models.decoder import DecoderForCausalLM
from onecard.engines.runtime.card_handle import CardHandle
from onecard.engines.step_size import step_size
from onecard.engines.text.generation_config import load_generation_defaults
from onecard.engines.text.service import TextService
from onecard.engines.text.tokenizer import load_tokenizer
from onecard.engines.weights.loader import LoadedModel, load_model
from onecard.registry.spec import ModelSpec


def max_model_len(spec: ModelSpec, config: DecoderConfig) -> int:
    return spec.engine.max_model_len or config.max_position_embeddings


def kv_layout(spec: ModelSpec, config: DecoderConfig, dtype: torch.dtype) -> KVLayout:
    return KVLayout(
        config.num_hidden_layers, config.num_key_value_heads, config.head_dim, spec.engine.block_size, dtype
    )


def build_llm(
    spec: ModelSpec,
    config: DecoderConfig,
    path: Path,
    card: CardHandle,
    floor_pages: int,
    ceiling_pages: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[LLMEngine, LoadedModel]:
    """Load the model and open its account in the card's page pool. Blocks while the weights load."""
    longest = max_model_len(spec, config)
    config = replace(config, max_position_embeddings=longest)
    loaded = load_model(path, config, card.device, spec.engine.dtype, progress=progress)
    layout = kv_layout(spec, config, loaded.activation_dtype)
    blocks = BlockPool(
        spec.name,
        card.pool,
        lambda page: layout.blocks_in_page(page, card.pool.page_bytes),
        spec.engine.enable_prefix_caching,
        cost_per_block=2.0 * config.num_matrix_parameters * layout.block_size,
    )
    card.pool.add_engine(spec.name, floor_pages, ceiling_pages, blocks)
    size = step_size(spec, card.device.type, longest)
    rows = RequestRows(
        size.max_num_seqs, -(-longest // layout.block_size), card.device, mirrored=card.device.type != "cpu"
    )
    graphs = None if spec.engine.enforce_eager else card.graphs
    assert isinstance(loaded.model, DecoderForCausalLM)
    kv_cache = layout.view(card.arena)
    runner = ModelRunner(loaded.model, kv_cache, rows, card.clock)
    if graphs is not None:
        sizes = spec.engine.cudagraph_capture_sizes or default_sizes(size.max_num_seqs)
        runner.graphs = DecodeGraphs(loaded.model, kv_cache, rows, config.vocab_size, longest, sizes, graphs)
        runner.graphs.capture()
    scheduler = Scheduler(
        KVCacheManager(blocks, layout.block_size, spec.name),
        SchedulerLimits(
            size.max_num_seqs,
            size.max_num_batched_tokens,
            spec.engine.long_prefill_token_threshold,
            resume_headroom=blocks.blocks_per_page,
        ),
    )
    template = Path(spec.engine.chat_template) if spec.engine.chat_template else None
    tokenizer = load_tokenizer(Path(spec.engine.tokenizer) if spec.engine.tokenizer else path, template)
    core = LLMCore(
        spec.name, spec.weight, spec.priority, scheduler, runner, rows, card.clock, tokenizer, card.stats
    )
    blocks.waiting_blocks, blocks.preempt_newest = core.waiting_blocks, core.preempt_newest
    defaults = load_generation_defaults(path)
    engine = LLMEngine(
        info=ModelInfo(
            name=spec.name,
            kind=spec.kind,
            root=spec.source,
            created=int(time.time()),
            max_model_len=longest,
            aliases=spec.aliases,
            default_sampling=defaults.sampling,
        ),
        core=core,
        loop=card.loop,
        text=TextService(tokenizer, card.executor),
        tokenizer=tokenizer,
        vocab_size=config.vocab_size,
        eos_token_ids=frozenset((*tokenizer.eos_token_ids, *defaults.eos_token_ids)),
        device=card.device,
        seed=spec.engine.seed,
    )
    card.loop.add_engine(core)
    return engine, loaded
