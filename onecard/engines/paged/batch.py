"""Packs a schedule into the tensors of one step."""

from dataclasses import dataclass

import numpy as np
import torch

from onecard.engines.layers.forward_batch import ForwardBatch
from onecard.engines.paged.request import Sequence
from onecard.engines.paged.rows import RequestRows
from onecard.engines.paged.scheduler import Schedule, ScheduledSequence
from onecard.engines.runtime.staging import Staging
from onecard.kernels.paged_attention import PagedBatch


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
