"""Packs a schedule into the tensors of one step."""

from dataclasses import dataclass

import numpy as np
import torch

from onecard.engines.layers.forward_batch import ForwardBatch
from onecard.engines.llm.request import Sequence
from onecard.engines.llm.rows import RequestRows
from onecard.engines.llm.scheduler import Schedule, ScheduledSequence
from onecard.kernels.paged_attention import PagedBatch


@dataclass(frozen=True)
class StepInputs:
    """What a step runs and whose logits it wants, N rows in all.

    `sampled[i]` gets its next token from logits row `sample_rows[i]`; `prompt_rows` are (sequence, first
    token, first logits row, count) of prompts that want log-probabilities of their own tokens: the logits row
    of a token is the one of the token before it.
    """

    forward: ForwardBatch
    sampled: list[Sequence]
    sample_rows: list[int]
    prompt_rows: list[tuple[Sequence, int, int, int]]


def build_inputs(
    schedule: Schedule, rows: RequestRows, kv_cache: torch.Tensor, block_size: int, device: torch.device
) -> StepInputs:
    """Gather one step's inputs from the scheduled sequences and their rows.

    Token t of sequence i, at position p, is packed at row cu_seqlens_q[i] + (p - num_computed_tokens[i]) and
    its K/V go to slot `block_tables[i, p // block_size] * block_size + p % block_size`.
    """
    items = schedule.items
    for item in items:
        rows.update_blocks(item.sequence)
    query_lens = np.fromiter((item.num_tokens for item in items), np.int32, len(items))
    starts = np.fromiter((item.sequence.num_computed_tokens for item in items), np.int32, len(items))
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

    def to_device(array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if device.type == "cpu" or not array.size:  # there are no zero bytes to pin
            return tensor.to(device)
        return tensor.pin_memory().to(device, non_blocking=True)

    logits_rows, sampled, sample_rows, prompt_rows = _select_logits(items, cu_seqlens_q)
    forward = ForwardBatch(
        input_ids=to_device(_token_ids(items)),
        positions=to_device(positions),
        paged=PagedBatch(
            cu_seqlens_q=to_device(cu_seqlens_q),
            seq_lens=to_device(seq_lens),
            block_tables=to_device(rows.block_tables[row_ids, :width]),
            slot_mapping=to_device(slots),
            max_seqlen_q=int(query_lens.max()),
            max_seqlen_k=max_seqlen_k,
            num_decodes=schedule.num_decodes,
        ),
        kv_cache=kv_cache,
        logits_rows=to_device(np.array(logits_rows, dtype=np.int64)),
    )
    return StepInputs(forward, sampled, sample_rows, prompt_rows)


def _token_ids(items: list[ScheduledSequence]) -> np.ndarray:
    ids: list[int] = []
    for item in items:
        start = item.sequence.num_computed_tokens
        ids.extend(item.sequence.token_ids[start : start + item.num_tokens])
    return np.array(ids, dtype=np.int64)


def _select_logits(
    items: list[ScheduledSequence], cu_seqlens_q: np.ndarray
) -> tuple[list[int], list[Sequence], list[int], list[tuple[Sequence, int, int, int]]]:
    """Which packed rows need logits: each sequence's last one if it samples, all of a prompt with
    logprobs."""
    logits_rows: list[int] = []
    sampled: list[Sequence] = []
    sample_rows: list[int] = []
    prompt_rows: list[tuple[Sequence, int, int, int]] = []
    for item, end in zip(items, cu_seqlens_q[1:].tolist(), strict=True):
        sequence = item.sequence
        if sequence.request.sampling.prompt_logprobs is not None and sequence.num_output_tokens == 0:
            first = end - item.num_tokens
            prompt_rows.append(
                (sequence, sequence.num_computed_tokens + 1, len(logits_rows), item.num_tokens)
            )
            logits_rows.extend(range(first, end))
        elif item.samples:
            logits_rows.append(end - 1)
        if item.samples:
            sampled.append(sequence)
            sample_rows.append(len(logits_rows) - 1)
    return logits_rows, sampled, sample_rows, prompt_rows
