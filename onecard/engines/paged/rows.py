"""A step's tensors, and the per-sequence state that they are gathered from by row: block tables, sampling
parameters, the last token.

A sequence keeps its row from its first step until it stops running, so a step costs one gather an array
instead of rebuilding everything from Python lists. The host's arrays lead; the card's rows follow by what has
changed, and alone know a token that has been sampled but not read yet.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch

from onecard.engines.layers.forward_batch import ForwardBatch
from onecard.engines.paged.request import Sequence
from onecard.engines.paged.schedule import Schedule, ScheduledSequence
from onecard.engines.runtime.staging import Staging
from onecard.kernels.paged_attention import PagedBatch


@dataclass(frozen=True)
class SamplingRows:
    """R + 1 rows of the card, what stays the same while a sequence runs; the last row is nobody's."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seed: torch.Tensor


_SAMPLING = tuple(field.name for field in fields(SamplingRows))


class RequestRows:
    """`max_num_seqs` rows, and one for padding; `max_blocks` is the widest block table.

    `mirrored`: the card's rows are a copy of the host's, kept up by `send` with every step; else they are the
    host's arrays, and nothing has to be sent.
    """

    def __init__(self, max_num_seqs: int, max_blocks: int, device: torch.device, mirrored: bool):
        count = max_num_seqs + 1
        self.padding_row = max_num_seqs
        self.block_tables = np.zeros((count, max_blocks), dtype=np.int32)
        self.num_blocks = np.zeros(count, dtype=np.int32)
        self.temperature = np.zeros(count, dtype=np.float32)
        self.top_k = np.zeros(count, dtype=np.int32)
        self.top_p = np.ones(count, dtype=np.float32)
        self.min_p = np.zeros(count, dtype=np.float32)
        self.seed = np.zeros(count, dtype=np.int64)
        self.last_token = torch.zeros(count, dtype=torch.int64, device=device)
        """On the card: the token that a row's last step sampled."""
        self._device, self._mirrored = device, mirrored
        self.device_tables = self._on_card(self.block_tables)
        self.device_sampling = SamplingRows(*(self._on_card(getattr(self, name)) for name in _SAMPLING))
        self._entered: list[int] = []
        self._new_blocks: list[tuple[int, int, int]] = []
        self._free = list(range(max_num_seqs))[::-1]

    def enter(self, sequence: Sequence) -> None:
        """Give the sequence a row and write what stays the same while it runs."""
        row = self._free.pop()
        params = sequence.request.sampling
        sequence.row = row
        self.num_blocks[row] = 0
        self.temperature[row] = params.temperature
        self.top_k[row] = params.top_k
        self.top_p[row] = params.top_p
        self.min_p[row] = params.min_p
        self.seed[row] = sequence.seed
        if self._mirrored:
            self._entered.append(row)

    def leave(self, sequence: Sequence) -> None:
        if sequence.row >= 0:
            self._free.append(sequence.row)
            sequence.row = -1

    def update_blocks(self, sequence: Sequence) -> None:
        """Write the blocks that the sequence gained since its last step."""
        row, table = sequence.row, sequence.block_table
        known = int(self.num_blocks[row])
        if len(table) != known:
            self.block_tables[row, known : len(table)] = table[known:]
            self.num_blocks[row] = len(table)
            if self._mirrored:
                self._new_blocks.append((row, known, len(table)))

    def rewrite_blocks(self, sequence: Sequence) -> None:
        """The sequence's blocks were moved: its next step writes its whole table anew."""
        if sequence.row >= 0:
            self.num_blocks[sequence.row] = 0

    def send(self, staging: Staging) -> None:
        """Bring the card's rows up to date: a copy for what entered, and one for new blocks."""
        if self._entered:
            self._send_sampling(staging, np.array(self._entered, dtype=np.int64))
            self._entered = []
        if self._new_blocks:
            self._send_blocks(staging, self._new_blocks)
            self._new_blocks = []

    def _send_sampling(self, staging: Staging, rows: np.ndarray) -> None:
        index, *values = staging.to_device([rows, *(getattr(self, name)[rows] for name in _SAMPLING)])
        for name, value in zip(_SAMPLING, values, strict=True):
            getattr(self.device_sampling, name).index_copy_(0, index, value)

    def _send_blocks(self, staging: Staging, blocks: list[tuple[int, int, int]]) -> None:
        width = self.block_tables.shape[1]
        places = np.concatenate([row * width + np.arange(first, end) for row, first, end in blocks])
        places = np.unique(places)  # a row may have changed hands since its last step: once each
        index, values = staging.to_device([places, self.block_tables.reshape(-1)[places]])
        self.device_tables.view(-1).index_copy_(0, index, values)

    def _on_card(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor.to(self._device, copy=True) if self._mirrored else tensor


@dataclass(frozen=True)
class PromptRows:
    """Logits rows `row .. row + count` of a prompt that wants log-probabilities of its tokens from `first`
    on: the logits row of a token is the one of the token before it."""

    sequence: Sequence
    first: int
    row: int
    count: int


@dataclass(frozen=True)
class StepInputs:
    """What a step runs and whose logits it wants, N rows in all.

    `sampled[i]` gets its next token from logits row `sample_rows[i]`.
    """

    forward: ForwardBatch
    sampled: list[ScheduledSequence]
    sample_rows: list[int]
    prompt_rows: list[PromptRows]


def build_inputs(
    schedule: Schedule, rows: RequestRows, kv_cache: torch.Tensor, block_size: int, staging: Staging
) -> StepInputs:
    """Gather one step's inputs from the scheduled sequences and their rows.

    Token t of sequence i, at position p, is packed at row cu_seqlens_q[i] + (p - start[i]) and its K/V go to
    slot `block_tables[i, p // block_size] * block_size + p % block_size`. A token that is still in flight is
    taken from the card's rows.
    """
    items = schedule.items
    query_lens = np.fromiter((item.num_tokens for item in items), np.int32, len(items))
    starts = np.fromiter((item.start for item in items), np.int32, len(items))
    row_ids = np.fromiter((item.sequence.row for item in items), np.int32, len(items))
    cu_seqlens_q = np.zeros(len(items) + 1, np.int32)
    np.cumsum(query_lens, out=cu_seqlens_q[1:])
    seq_lens = starts + query_lens

    positions = np.arange(cu_seqlens_q[-1], dtype=np.int64) + np.repeat(
        starts - cu_seqlens_q[:-1], query_lens
    )
    blocks = rows.block_tables[np.repeat(row_ids, query_lens), positions // block_size]
    slots = blocks.astype(np.int64) * block_size + positions % block_size
    max_seqlen_k = int(seq_lens.max())
    width = -(-max_seqlen_k // block_size)
    token_ids, unread = _token_ids(items)
    logits_rows, sampled, sample_rows, prompt_rows = _select_logits(items, cu_seqlens_q)

    arrays = [
        token_ids,
        positions,
        slots,
        np.array(logits_rows, dtype=np.int64),
        cu_seqlens_q,
        seq_lens,
        rows.block_tables[row_ids, :width],
    ]
    if unread:
        arrays.append(np.array(unread, dtype=np.int64).T.copy())
    input_ids, position, slot, wanted, cu_seqlens, lengths, tables, *rest = staging.to_device(arrays)
    if unread:
        places, from_rows = rest[0]
        input_ids.index_copy_(0, places, rows.last_token[from_rows])
    paged = PagedBatch(
        cu_seqlens_q=cu_seqlens,
        seq_lens=lengths,
        block_tables=tables,
        slot_mapping=slot,
        max_seqlen_q=int(query_lens.max()),
        max_seqlen_k=max_seqlen_k,
        num_decodes=schedule.num_decodes,
    )
    forward = ForwardBatch(input_ids, position.unsqueeze(0), paged, kv_cache, wanted)
    return StepInputs(forward, sampled, sample_rows, prompt_rows)


def _token_ids(items: list[ScheduledSequence]) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Packed token ids `[T]`, 0 for those not read yet, and of these (place, the row that knows it)."""
    ids: list[int] = []
    unread: list[tuple[int, int]] = []
    for item in items:
        known = item.sequence.token_ids[item.start : item.start + item.num_tokens]
        ids.extend(known)
        if len(known) < item.num_tokens:
            unread.append((len(ids), item.sequence.row))
            ids.append(0)
    return np.array(ids, dtype=np.int64), unread


def _select_logits(
    items: list[ScheduledSequence], cu_seqlens_q: np.ndarray
) -> tuple[list[int], list[ScheduledSequence], list[int], list[PromptRows]]:
    """Which packed rows need logits: each sequence's last one if it samples, all of a prompt with
    logprobs."""
    logits_rows: list[int] = []
    sampled: list[ScheduledSequence] = []
    sample_rows: list[int] = []
    prompt_rows: list[PromptRows] = []
    for item, end in zip(items, cu_seqlens_q[1:].tolist(), strict=True):
        if item.sequence.request.sampling.prompt_logprobs is not None and item.output_index == 0:
            prompt_rows.append(PromptRows(item.sequence, item.start + 1, len(logits_rows), item.num_tokens))
            logits_rows.extend(range(end - item.num_tokens, end))
        elif item.samples:
            logits_rows.append(end - 1)
        if item.samples:
            sampled.append(item)
            sample_rows.append(len(logits_rows) - 1)
    return logits_rows, sampled, sample_rows, prompt_rows
