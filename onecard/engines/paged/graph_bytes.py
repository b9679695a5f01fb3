"""What the captured graphs of a language model will hold, estimated before there is a model."""

from collections.abc import Sequence

import torch

from onecard.engines.models.config import DecoderConfig

LIBRARY_BYTES = 32 << 20
"""cuBLAS takes a workspace of that size for captured work on Hopper."""

NODES_A_LAYER = 16
BYTES_A_NODE = 4096
"""A graph is a list of kernel launches with their arguments, kept by the driver."""

SPLIT_PROGRAMS = 512
"""Programs of split-KV decode that are wanted at any batch size (kernels/triton/paged_decode.py)."""


def graph_bytes(
    sizes: Sequence[int], config: DecoderConfig, dtype: torch.dtype, max_model_len: int, block_size: int
) -> int:
    """Bytes of the static buffers, of the memory that all sizes share, and of the graphs themselves.

    `sizes`: the batch sizes; none: no graphs.
    """
    if not sizes:
        return 0
    shared = _activations(max(sizes), config, dtype)
    graphs = len(sizes) * config.num_hidden_layers * NODES_A_LAYER * BYTES_A_NODE
    return static_bytes(max(sizes), config.vocab_size, max_model_len, block_size) + shared + graphs


def static_bytes(size: int, vocab_size: int, max_model_len: int, block_size: int) -> int:
    """Of `DecodeGraphs`' own buffers: logits, block tables, and a few numbers a sequence."""
    logits, table, numbers = vocab_size * 4, -(-max_model_len // block_size) * 4, 128
    return size * (logits + table + numbers)


def _activations(size: int, config: DecoderConfig, dtype: torch.dtype) -> int:
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    widths = 4 * config.hidden_size + 2 * heads * config.head_dim + 3 * config.intermediate_size
    group = config.num_attention_heads // config.num_key_value_heads
    programs = max(2 * SPLIT_PROGRAMS, size * config.num_key_value_heads)
    partial_sums = programs * group * (config.head_dim + 1) * 4
    logits = size * config.vocab_size * (dtype.itemsize + 4)  # as computed, and widened
    angles = size * config.rope.rotary_dim * 4
    return size * widths * dtype.itemsize + angles + logits + partial_sums + LIBRARY_BYTES
