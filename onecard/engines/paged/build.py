"""Paged decoders: what they need of a card, and their device-loop side; weights come later."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from onecard.engines.lifecycle.card_model import CardModel, Placement
from onecard.engines.memory.arena import KVLayout
from onecard.engines.memory.block_pool import BlockPool
from onecard.engines.memory.card_plan import CardFacts, ModelNeeds
from onecard.engines.models.config import DecoderConfig
from onecard.engines.paged.core import PagedCore
from onecard.engines.paged.decode_graphs import DecodeGraphs, activation_bytes, default_sizes, graph_bytes
from onecard.engines.paged.practice import PagedPractice
from onecard.engines.paged.rows import RequestRows
from onecard.engines.paged.runner import ModelRunner
from onecard.engines.paged.scheduler import SchedulerLimits
from onecard.engines.runtime.card_handle import CardHandle
from onecard.engines.step.hooks import EngineHooks
from onecard.engines.step.sizes import StepSize, longest_text, model_needs
from onecard.engines.step.warm_up import WarmUp
from onecard.engines.text.tokenizer import Tokenizer
from onecard.engines.weights.loader import activation_dtype, load_model, weight_needs
from onecard.registry.spec import ModelSpec


@dataclass(frozen=True)
class DecoderFiles:
    """A checkpoint at `path`, and its config for sequences of `max_model_len` tokens at most."""

    path: Path
    config: DecoderConfig

    @classmethod
    def of(cls, spec: ModelSpec, path: Path, config: DecoderConfig) -> "DecoderFiles":
        own, rope = config.max_position_embeddings, config.rope
        stretched = int(rope.factor * rope.original_max_position_embeddings)
        longest = longest_text(spec, own, max(own, stretched))
        return cls(path, replace(config, max_position_embeddings=longest))

    @property
    def max_model_len(self) -> int:
        return self.config.max_position_embeddings


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


def decoder_needs(spec: ModelSpec, files: DecoderFiles, size: StepSize, facts: CardFacts) -> ModelNeeds:
    device_type, config, longest = facts.device.split(":")[0], files.config, files.max_model_len
    dtype = activation_dtype(files.path, spec.engine.dtype, device_type)
    captured = graph_sizes(spec, size) if device_type == "cuda" else []
    return model_needs(
        spec,
        facts,
        weight_needs(files.path, config, spec.engine.dtype, device_type),
        _workspace_bytes(size, config, dtype),
        longest,
        kv_layout(spec, config, dtype).block_bytes,
        graph_bytes(captured, config, dtype, longest, spec.engine.block_size),
    )


def _workspace_bytes(size: StepSize, config: DecoderConfig, dtype: torch.dtype) -> int:
    """Of the largest step. Logits are float32, with a sorted copy and probabilities of each for sampling."""
    logits = size.max_num_seqs * config.vocab_size * 4 * 4
    return activation_bytes(size.max_num_batched_tokens, config, dtype) + logits


def build_decoder(
    spec: ModelSpec, files: DecoderFiles, size: StepSize, tokenizer: Tokenizer, place: Placement
) -> tuple[PagedCore, CardModel]:
    """The core, not yet known to its card, and the model that brings in its weights."""
    card, config = place.card, files.config
    layout = kv_layout(spec, config, activation_dtype(files.path, spec.engine.dtype, card.device.type))
    core = PagedCore(
        spec.name,
        spec.weight,
        spec.priority,
        lambda requests: BlockPool(
            spec.name,
            card.pool,
            lambda page: layout.blocks_in_page(page, card.pool.page_bytes),
            spec.engine.enable_prefix_caching,
            requests=requests,
            cost_per_block=2.0 * config.num_matrix_parameters * layout.block_size,
        ),
        SchedulerLimits(
            size.max_num_seqs, size.max_num_batched_tokens, spec.engine.long_prefill_token_threshold
        ),
        _runner(spec, files, layout, size, card),
        card.clock,
        tokenizer,
        card.stats,
        card.loop.deliver,
    )
    brief = card.device.type == "cpu"
    practice = PagedPractice(core.scheduler, config.vocab_size, files.max_model_len, brief)
    warm_up = WarmUp(core, practice, brief) if place.warm_up else None
    hooks = EngineHooks(core, card.device, place.share.workspace_bytes, warm_up, place.on_capture)
    return core, place.card_model(
        spec,
        lambda memory, progress: load_model(
            files.path, config, card.device, spec.engine.dtype, memory, progress
        ),
        core,
        hooks,
    )


def _runner(
    spec: ModelSpec, files: DecoderFiles, layout: KVLayout, size: StepSize, card: CardHandle
) -> ModelRunner:
    widest_table = -(-files.max_model_len // layout.block_size)
    sizes = graph_sizes(spec, size) if card.graphs is not None else []
    mirrored = bool(sizes) and card.device.type != "cpu"  # graphs alone read the card's rows
    rows = RequestRows(size.max_num_seqs, widest_table, card.device, mirrored)
    kv_cache, graphs = layout.view(card.arena), None
    if card.graphs is not None and sizes:
        vocab_size, longest = files.config.vocab_size, files.max_model_len
        graphs = DecodeGraphs(kv_cache, rows, vocab_size, longest, sizes, card.graphs)
    return ModelRunner(kv_cache, rows, card.clock, graphs)
