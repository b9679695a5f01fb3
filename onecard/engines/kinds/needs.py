"""What each model needs of its card, from its files' headers: the plan's input. Loads no weights."""

from dataclasses import replace
from pathlib import Path

import torch

from onecard.engines.memory.plan import CardFacts, ModelNeeds, PlanError
from onecard.engines.models.config import DecoderConfig, EncoderConfig, ModelConfig
from onecard.engines.models.registry import load_config
from onecard.engines.oneshot.build import max_model_len as encoder_max_model_len
from onecard.engines.oneshot.sentence_config import load_sentence_config
from onecard.engines.paged.build import graph_sizes, kv_layout
from onecard.engines.paged.build import max_model_len as decoder_max_model_len
from onecard.engines.paged.graph_bytes import graph_bytes
from onecard.engines.step.step_size import StepSize, step_size
from onecard.engines.weights.loader import WeightBytes, activation_dtype, weight_needs
from onecard.registry.spec import ModelSpec


def read_config(spec: ModelSpec, path: Path) -> ModelConfig:
    """The model's own config, checked against the kind that the registry says it is. Raises `PlanError`."""
    folder = path if spec.kind == "llm" else load_sentence_config(path).transformer_path
    config = load_config(folder, spec.kind)
    fits = isinstance(config, DecoderConfig) if spec.kind == "llm" else isinstance(config, EncoderConfig)
    if not fits:
        raise PlanError(
            f"{spec.name}: `kind: {spec.kind}` doesn't go with a {config.architecture}; "
            f"write `kind: {'llm' if isinstance(config, DecoderConfig) else 'embedding'}`"
        )
    return config


def model_needs(spec: ModelSpec, config: ModelConfig, path: Path, facts: CardFacts) -> ModelNeeds:
    """Bytes of weights, workspace and KV blocks. `facts.budget_bytes` is what the fractions are shares of."""
    device_type = facts.device.split(":")[0]
    if isinstance(config, EncoderConfig):
        sentences = load_sentence_config(path)
        folder = sentences.transformer_path
        longest = encoder_max_model_len(spec, config, sentences)
        size = step_size(spec, device_type, longest)
        dtype = activation_dtype(folder, spec.engine.dtype, device_type)
        return _needs(
            spec,
            facts,
            weight_needs(folder, config, spec.engine.dtype, device_type),
            _encoder_workspace(max(size.max_num_batched_tokens, longest), config, dtype),
            None,
            longest,
        )
    longest = decoder_max_model_len(spec, config)
    config = replace(config, max_position_embeddings=longest)
    dtype = activation_dtype(path, spec.engine.dtype, device_type)
    size = step_size(spec, device_type, longest)
    captured = graph_sizes(spec, size) if device_type == "cuda" else []
    return _needs(
        spec,
        facts,
        weight_needs(path, config, spec.engine.dtype, device_type),
        _decoder_workspace(size, config, dtype),
        kv_layout(spec, config, dtype).block_bytes,
        longest,
        graph_bytes(captured, config, dtype, longest, spec.engine.block_size),
    )


def _needs(
    spec: ModelSpec,
    facts: CardFacts,
    weights: WeightBytes,
    workspace_bytes: int,
    block_bytes: int | None,
    max_model_len: int,
    graph_bytes: int = 0,
) -> ModelNeeds:
    return ModelNeeds(
        name=spec.name,
        kind=spec.kind,
        home_bytes=weights.home,
        packed_bytes=weights.packed,
        workspace_bytes=workspace_bytes,
        block_bytes=block_bytes,
        block_size=spec.engine.block_size,
        max_model_len=max_model_len,
        floor=spec.memory.of(facts.budget_bytes),
        ceiling=spec.burst.of(facts.budget_bytes),
        pinned=spec.pinned,
        preload=spec.preload,
        graph_bytes=graph_bytes,
    )


def _decoder_workspace(size: StepSize, config: DecoderConfig, dtype: torch.dtype) -> int:
    """Peak activations of the largest step: two residual streams, q, k, v and output, gate-up and its
    product.

    Logits are float32, with a sorted copy and probabilities of each for sampling.
    """
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    widths = 4 * config.hidden_size + 2 * heads * config.head_dim + 3 * config.intermediate_size
    activations = size.max_num_batched_tokens * widths * dtype.itemsize
    logits = size.max_num_seqs * config.vocab_size * 4 * 4
    return activations + logits


def _encoder_workspace(num_tokens: int, config: EncoderConfig, dtype: torch.dtype) -> int:
    widths = 8 * config.hidden_size + 2 * config.intermediate_size
    return num_tokens * widths * dtype.itemsize
