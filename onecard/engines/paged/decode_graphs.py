"""Decode steps as captured graphs: one for each of a few batch sizes, the whole step in it.

    one small copy -> [ gather inputs by row -> model -> logits -> sample -> last tokens ] -> one copy back

A batch runs in the smallest graph that holds it; the rows left over are padding (row -1): they store nothing
and attend to nothing. Every graph reads the same static buffers and the card's rows, so a replay needs
nothing from Python but which rows take part, and at which positions.
"""

from bisect import bisect_left
from collections.abc import Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch

from onecard.engines.layers.forward_batch import ForwardBatch
from onecard.engines.models.config import DecoderConfig
from onecard.engines.paged.rows import RequestRows
from onecard.engines.paged.schedule import Schedule, ScheduledSequence
from onecard.engines.runtime.card_handle import GraphBackend, Run
from onecard.engines.runtime.staging import Staging, staged_bytes, staged_views
from onecard.kernels.gather_inputs import gather_decode_inputs
from onecard.kernels.paged_attention import PagedBatch
from onecard.kernels.paged_attention.decode_splits import partial_bytes
from onecard.kernels.sampling import sample

LIBRARY_BYTES = 32 << 20
"""cuBLAS takes a workspace of that size for captured work on Hopper."""

NODES_A_LAYER = 16
BYTES_A_NODE = 4096
"""A graph is a list of kernel launches with their arguments, kept by the driver."""


def graph_bytes(
    sizes: Sequence[int], config: DecoderConfig, dtype: torch.dtype, max_model_len: int, block_size: int
) -> int:
    """Bytes of the static buffers, of the memory that all sizes share, and of the graphs themselves.

    `sizes`: the batch sizes; none: no graphs.
    """
    if not sizes:
        return 0
    activations = _activations(max(sizes), config, dtype)
    graphs = len(sizes) * config.num_hidden_layers * NODES_A_LAYER * BYTES_A_NODE
    return static_bytes(max(sizes), config.vocab_size, max_model_len, block_size) + activations + graphs


def static_bytes(size: int, vocab_size: int, max_model_len: int, block_size: int) -> int:
    """Of `DecodeGraphs`' own buffers: logits, block tables, and a few numbers a sequence."""
    logits, table, numbers = vocab_size * 4, -(-max_model_len // block_size) * 4, 128
    return size * (logits + table + numbers)


def activation_bytes(num_tokens: int, config: DecoderConfig, dtype: torch.dtype) -> int:
    """Peak activations of so many tokens: two residual streams, q, k, v and output, gate-up and its product;
    and the cosines and sines of their positions, float32."""
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    widths = 4 * config.hidden_size + 2 * heads * config.head_dim + 3 * config.intermediate_size
    return num_tokens * (widths * dtype.itemsize + config.rope.rotary_dim * 4)


def _activations(size: int, config: DecoderConfig, dtype: torch.dtype) -> int:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    partial_sums = partial_bytes(size, heads, kv_heads, config.head_dim)
    logits = size * config.vocab_size * (dtype.itemsize + 4)  # as computed, and widened
    return activation_bytes(size, config, dtype) + logits + partial_sums + LIBRARY_BYTES


class PagedModel(Protocol):
    """Packed tokens to hidden states `[T, H]`, rows of those to logits `[N, V]` float32."""

    def __call__(self, batch: ForwardBatch) -> torch.Tensor: ...

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor: ...


def default_sizes(max_num_seqs: int) -> list[int]:
    """1, 2, 4, then every multiple of 8 up to 256 and of 16 beyond, as far as `max_num_seqs`, itself
    included (vLLM's choice)."""
    sizes = [1, 2, 4, *range(8, 257, 8), *range(272, max_num_seqs + 1, 16)]
    return sorted({*(size for size in sizes if size < max_num_seqs), max_num_seqs})


class DecodeGraphs:
    """The graphs of one model, set before `capture`. `run` any step that `fits` once all are there."""

    def __init__(
        self,
        kv_cache: torch.Tensor,
        rows: RequestRows,
        vocab_size: int,
        max_model_len: int,
        sizes: Sequence[int],
        backend: GraphBackend,
    ):
        self.sizes = sorted(sizes)
        self.model: PagedModel | None = None
        self._kv_cache, self._rows = kv_cache, rows
        self._max_model_len = max_model_len
        self._backend = backend
        self._graphs: dict[int, Run] = {}
        most, device = self.sizes[-1], kv_cache.device
        self._inputs = [np.zeros(most, dtype) for dtype in (np.int64, np.int64, np.int32, np.int32)]
        """tokens (-1: the row's last), steps, row ids (-1: padding), starts."""
        self._static = torch.zeros(staged_bytes(self._inputs), dtype=torch.uint8, device=device)
        self._tokens, self._steps, self._row_ids, self._starts = staged_views(self._static, self._inputs)
        self._row_ids.fill_(-1)
        self._input_ids = torch.zeros(most, dtype=torch.int64, device=device)
        self._positions = torch.zeros((1, most), dtype=torch.int64, device=device)
        self._slots = torch.zeros(most, dtype=torch.int64, device=device)
        self._seq_lens = torch.zeros(most, dtype=torch.int32, device=device)
        self._cu_seqlens = torch.arange(most + 1, dtype=torch.int32, device=device)
        self._tables = torch.zeros((most, rows.block_tables.shape[1]), dtype=torch.int32, device=device)
        self._sampled = torch.zeros(most, dtype=torch.int64, device=device)
        self.logits = torch.zeros((most, vocab_size), dtype=torch.float32, device=device)
        """Of the last step that ran, `[size, vocab]` float32."""

    def capture(self, size: int) -> None:
        """The graph of one of `sizes`. Nothing else runs on the card meanwhile."""
        self._graphs[size] = self._backend.capture(partial(self._step, size))

    def fits(self, schedule: Schedule) -> bool:
        """Whether the step is decodes only, and few enough."""
        items = schedule.items
        if not len(items) == schedule.num_decodes <= self.sizes[-1]:
            return False
        return all(
            item.samples and (item.output_index or item.sequence.request.sampling.prompt_logprobs is None)
            for item in items
        )

    def run(self, schedule: Schedule, staging: Staging) -> torch.Tensor:
        """Launch the step; returns its tokens `[n]` int64, still on the card, valid until the next step."""
        items = schedule.items
        tokens, steps, row_ids, starts = self._inputs
        count = len(items)
        tokens[:count] = [_known_token(item) for item in items]
        steps[:count] = [item.output_index for item in items]
        starts[:count] = [item.start for item in items]
        row_ids.fill(-1)
        row_ids[:count] = [item.sequence.row for item in items]
        staging.copy_into(self._static, self._inputs)
        self._graphs[self.sizes[bisect_left(self.sizes, count)]]()
        return self._sampled[:count]

    @torch.inference_mode()
    def _step(self, size: int) -> None:
        rows, row_ids = self._rows, self._row_ids[:size]
        input_ids, positions, slots = self._input_ids[:size], self._positions[:, :size], self._slots[:size]
        seq_lens, tables = self._seq_lens[:size], self._tables[:size]
        gather_decode_inputs(
            row_ids,
            self._starts[:size],
            rows.last_token,
            rows.device_tables,
            self._kv_cache.shape[3],
            input_ids,
            positions[0],
            slots,
            seq_lens,
            tables,
        )
        tokens = self._tokens[:size]
        known = torch.where((tokens >= 0) & (row_ids >= 0), tokens, input_ids)
        paged = PagedBatch(
            self._cu_seqlens[: size + 1], seq_lens, tables, slots, 1, self._max_model_len, size
        )
        model = self.model
        assert model is not None, "the model is asleep"
        hidden = model(ForwardBatch(known, positions, paged, self._kv_cache, input_ids[:0]))
        logits = self.logits[:size]
        logits.copy_(model.compute_logits(hidden))
        index = torch.where(row_ids >= 0, row_ids, rows.padding_row).long()
        params = rows.device_sampling
        by_row = (params.temperature, params.top_k, params.top_p, params.min_p, params.seed)
        arguments = [*(values[index] for values in by_row), self._steps[:size]]
        sampled = sample(logits, *arguments)
        self._sampled[:size].copy_(sampled)
        rows.last_token.index_copy_(0, index, sampled)


def _known_token(item: ScheduledSequence) -> int:
    known = item.sequence.token_ids
    return known[item.start] if item.start < len(known) else -1
