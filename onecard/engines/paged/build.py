"""Puts a language model's engine together: files -> pools -> scheduler -> engine; weights come later."""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from onecard.engines.api import ModelInfo
from onecard.engines.lifecycle.attach import Placement
from onecard.engines.lifecycle.card_model import CardModel
from onecard.engines.memory.block_pool import BlockPool
from onecard.engines.memory.kv_layout import KVLayout
from onecard.engines.models.config import DecoderConfig
from onecard.engines.paged.core import PagedCore
from onecard.engines.paged.decode_graphs import DecodeGraphs, default_sizes
from onecard.engines.paged.engine import GenerationEngine
from onecard.engines.paged.hooks import PagedHooks
from onecard.engines.paged.kv_cache_manager import KVCacheManager
from onecard.engines.paged.rows import RequestRows
from onecard.engines.paged.runner import ModelRunner
from onecard.engines.paged.scheduler import Scheduler, SchedulerLimits
from onecard.engines.paged.warm_up import WarmUp
from onecard.engines.runtime.card_handle import CardHandle
from onecard.engines.step.step_size import StepSize, step_size
from onecard.engines.text.generation_config import load_generation_defaults
from onecard.engines.text.service import TextService
from onecard.engines.text.tokenizer import load_tokenizer
from onecard.engines.weights.allocator import WeightAllocator
from onecard.engines.weights.loader import LoadedModel, Progress, activation_dtype, load_model
from onecard.registry.spec import ModelSpec


def max_model_len(spec: ModelSpec, config: DecoderConfig) -> int:
    return spec.engine.max_model_len or config.max_position_embeddings


def kv_layout(spec: ModelSpec, config: DecoderConfig, dtype: torch.dtype) -> KVLayout:
    return KVLayout(
        config.num_hidden_layers, config.num_key_value_heads, config.head_dim, spec.engine.block_size, dtype
    )


def graph_sizes(spec: ModelSpec, size: StepSize) -> list[int]:
    """Batch sizes that get a graph where there are graphs at all; none with `enforce_eager`."""
    if spec.engine.enforce_eager:
        return []
    asked = [n for n in spec.engine.cudagraph_capture_sizes if n <= size.max_num_seqs]
    return asked or default_sizes(size.max_num_seqs)


def build_llm(
    spec: ModelSpec, config: DecoderConfig, path: Path, place: Placement
) -> tuple[GenerationEngine, CardModel]:
    """The engine, not yet known to its card, and the card_model that brings in its weights."""
    card = place.card
    longest = max_model_len(spec, config)
    config = replace(config, max_position_embeddings=longest)
    size = step_size(spec, card.device.type, longest)
    layout = kv_layout(spec, config, activation_dtype(path, spec.engine.dtype, card.device.type))
    blocks = BlockPool(
        spec.name,
        card.pool,
        lambda page: layout.blocks_in_page(page, card.pool.page_bytes),
        spec.engine.enable_prefix_caching,
        cost_per_block=2.0 * config.num_matrix_parameters * layout.block_size,
    )
    rows, runner = _runner(spec, config, layout, size, longest, card)
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
    core = PagedCore(
        spec.name,
        spec.weight,
        spec.priority,
        scheduler,
        runner,
        rows,
        card.clock,
        tokenizer,
        card.stats,
        card.loop.deliver,
    )
    blocks.waiting_blocks, blocks.preempt_newest = core.waiting_blocks, core.preempt_newest
    blocks.move_blocks = core.move_blocks
    hooks = PagedHooks(
        core,
        runner,
        card.device,
        place.share.workspace_bytes,
        WarmUp(core, config.vocab_size, longest, card.device.type == "cpu") if place.warm_up else None,
        place.on_capture,
    )
    defaults = load_generation_defaults(path)
    engine = GenerationEngine(
        info=ModelInfo(
            name=spec.name,
            kind=spec.kind,
            root=spec.source,
            created=int(time.time()),
            max_model_len=longest,
            tasks=frozenset({"generate"}),
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
        gate=place.gate,
        seed=spec.engine.seed,
    )
    load = partial(_load, spec, config, path, card.device)
    return engine, place.card_model(spec, load, core, hooks, blocks)


def _runner(
    spec: ModelSpec, config: DecoderConfig, layout: KVLayout, size: StepSize, longest: int, card: CardHandle
) -> tuple[RequestRows, ModelRunner]:
    widest_table = -(-longest // layout.block_size)
    sizes = graph_sizes(spec, size) if card.graphs is not None else []
    mirrored = bool(sizes) and card.device.type != "cpu"  # graphs alone read the card's rows
    rows = RequestRows(size.max_num_seqs, widest_table, card.device, mirrored)
    kv_cache = layout.view(card.arena)
    runner = ModelRunner(kv_cache, rows, card.clock)
    if card.graphs is not None and sizes:
        runner.graphs = DecodeGraphs(kv_cache, rows, config.vocab_size, longest, sizes, card.graphs)
    return rows, runner


def _load(
    spec: ModelSpec,
    config: DecoderConfig,
    path: Path,
    device: torch.device,
    memory: WeightAllocator,
    progress: Progress | None,
) -> LoadedModel:
    return load_model(path, config, device, spec.engine.dtype, memory, progress)
