"""What a paged decoder needs of its card, from its files' headers."""

import torch

from onecard.engines.memory.card_plan import CardFacts, ModelNeeds
from onecard.engines.models.config import DecoderConfig
from onecard.engines.paged.build import DecoderFiles, graph_sizes, kv_layout
from onecard.engines.paged.graph_bytes import graph_bytes
from onecard.engines.step.needs import model_needs
from onecard.engines.step.step_size import StepSize
from onecard.engines.weights.loader import activation_dtype, weight_needs
from onecard.registry.spec import ModelSpec


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
    """Peak activations of the largest step: two residual streams, q, k, v and output, gate-up and its
    product.

    Logits are float32, with a sorted copy and probabilities of each for sampling.
    """
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    widths = 4 * config.hidden_size + 2 * heads * config.head_dim + 3 * config.intermediate_size
    activations = size.max_num_batched_tokens * widths * dtype.itemsize
    logits = size.max_num_seqs * config.vocab_size * 4 * 4
    return activations + logits
