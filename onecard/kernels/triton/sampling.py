"""Sampling in two launches: many blocks digest each row, one block a row chooses.

A block takes a chunk of a row. Of a greedy row it leaves the largest logit, of one that nothing cuts its
race's winner (measured from the chunk's largest logit: the row's is not known yet), of one with top-k, top-p
or min-p the largest logit of each small group of neighbours, and what the chunk weighs. The second launch
compares the chunks' winners. Where a row is cut, its groups' largest logits bound where, and only groups that
reach so far are read again (see `sampling_cut`).
"""

import torch
import triton
import triton.language as tl

from onecard.kernels.triton.gumbel import gumbel, step_key
from onecard.kernels.triton.sampling_cut import (
    candidates,
    clean_logits,
    distance_below,
    list_groups,
    reached,
    threshold,
    weigh,
)

CHUNK = 4096
MAX_GROUPS = 2048
"""Of a row; a group is the smallest power of two of neighbours that makes no more."""
TILE = 2048
"""How many tokens the last halvings look at."""
FARTHEST_WINNER = 25.0
"""Noise lies between -2.82 and 22.19 (`kernels.gumbel`): a token farther below the likeliest never wins."""


@triton.jit
def _is_cut(top_k, top_p, min_p, vocab):
    return ((top_k > 0) & (top_k < vocab)) | (top_p < 1) | (min_p > 0)


@triton.jit(do_not_specialize=["temperatures", "top_ks", "top_ps", "min_ps", "seeds", "steps"])
def _digest(
    all_logits,
    temperatures,
    top_ks,
    top_ps,
    min_ps,
    seeds,
    steps,
    group_peaks,
    peaks,
    scores,
    masses,
    winners,
    vocab,
    stride_row: tl.int64,
    GROUP: tl.constexpr,
    CHUNK_GROUPS: tl.constexpr,
):
    """Of each chunk: its largest logit, its winner's lead over that (0 where there is no race) and what it
    weighs; of each group its largest logit."""
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    at = row * tl.num_programs(0) + chunk
    group = tl.arange(0, CHUNK_GROUPS)
    column = (chunk * CHUNK_GROUPS + group[:, None]) * GROUP + tl.arange(0, GROUP)[None, :]
    values = clean_logits(all_logits + row * stride_row, column, vocab)
    highest = tl.max(values, axis=1)
    peak = tl.max(highest, axis=0)
    winner = tl.min(tl.min(tl.where(values == peak, column, vocab), axis=1), axis=0)
    score = tl.full((), 0.0, tl.float32)
    temperature = tl.load(temperatures + row)
    if temperature > 0:
        distance = distance_below(values, peak, temperature)
        if _is_cut(tl.load(top_ks + row), tl.load(top_ps + row), tl.load(min_ps + row), vocab):
            tl.store(group_peaks + at * CHUNK_GROUPS + group, highest)
            tl.store(masses + at, tl.sum(tl.sum(tl.exp(-distance), axis=1), axis=0))
        else:
            key = step_key(tl.load(seeds + row), tl.load(steps + row))
            noisy = tl.where(column < vocab, gumbel(key, column) - distance, float("-inf"))
            score = tl.max(tl.max(noisy, axis=1), axis=0)
            first = tl.min(tl.min(tl.where(noisy == score, column, vocab), axis=1), axis=0)
            winner = tl.where(score > float("-inf"), first, winner)
    tl.store(scores + at, score)
    tl.store(peaks + at, peak)
    tl.store(winners + at, winner)


@triton.jit
def _cut_race(
    logits,
    vocab,
    peak,
    temperature,
    top_k,
    top_p,
    min_p,
    key,
    nearest,
    mass,
    chosen,
    groups,
    scratch,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    FARTHEST: tl.constexpr,
):
    """The winner among the tokens that are kept; `chosen` where the row is sick."""
    limit = tl.minimum(-tl.log(tl.maximum(min_p, 1e-30)), FARTHEST).to(tl.int32, bitcast=True)
    by_count = (top_k > 0) & (top_k < vocab)
    # as many groups' nearest tokens within a distance, at least as many tokens; and so with their weights
    if by_count:
        limit = threshold(nearest, tl.where(nearest <= limit, 1.0, 0.0), top_k.to(tl.float32), limit)
    elif top_p < 1:
        weights = tl.exp(-nearest.to(tl.float32, bitcast=True))
        limit = threshold(nearest, weights, top_p * mass * 1.0001, limit)
    count = list_groups(nearest, limit, groups)
    number, _ = weigh(logits, groups, count, vocab, peak, temperature, limit, True, GROUP, BLOCK)
    if by_count:
        limit = reached(
            logits, groups, count, vocab, peak, temperature, limit, number, top_k.to(tl.float32), scratch,
            True, GROUP, BLOCK, TILE,
        )  # fmt: skip
    if top_p < 1:
        if by_count:
            number, mass = weigh(logits, groups, count, vocab, peak, temperature, limit, False, GROUP, BLOCK)
        limit = reached(
            logits, groups, count, vocab, peak, temperature, limit, number, top_p * mass, scratch,
            False, GROUP, BLOCK, TILE,
        )  # fmt: skip
    best = tl.full((), float("-inf"), tl.float32)
    for start in range(0, count, BLOCK // GROUP):
        column, distance = candidates(logits, groups, start, count, vocab, peak, temperature, GROUP, BLOCK)
        kept = distance.to(tl.int32, bitcast=True) <= limit
        noisy = tl.where(kept, gumbel(key, column) - distance, float("-inf"))
        most = tl.max(noisy, axis=0)
        first = tl.min(tl.where(noisy == most, column, vocab), axis=0)
        chosen = tl.where(most > best, first, chosen)
        best = tl.maximum(best, most)
    return chosen


@triton.jit(do_not_specialize=["temperatures", "top_ks", "top_ps", "min_ps", "seeds", "steps"])
def _choose(
    all_logits,
    temperatures,
    top_ks,
    top_ps,
    min_ps,
    seeds,
    steps,
    group_peaks,
    peaks,
    scores,
    masses,
    winners,
    group_lists,
    scratches,
    tokens,
    vocab,
    stride_row: tl.int64,
    CHUNKS: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    FARTHEST: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.arange(0, BLOCK_CHUNKS)
    at, real = row * CHUNKS + chunk, chunk < CHUNKS
    chunk_peaks = tl.load(peaks + at, mask=real, other=float("-inf"))
    peak = tl.max(chunk_peaks, axis=0)
    temperature = tl.load(temperatures + row)
    top_k, top_p, min_p = tl.load(top_ks + row), tl.load(top_ps + row), tl.load(min_ps + row)
    behind = distance_below(chunk_peaks, peak, tl.where(temperature > 0, temperature, 1.0))
    behind = tl.where(chunk_peaks == peak, 0.0, behind)
    leads = tl.load(scores + at, mask=real, other=float("-inf")) - behind
    first = tl.min(tl.where(leads == tl.max(leads, axis=0), chunk, CHUNKS - 1), axis=0)
    chosen = tl.load(winners + row * CHUNKS + first)
    if (temperature > 0) & _is_cut(top_k, top_p, min_p, vocab):
        group = tl.arange(0, BLOCK_GROUPS)
        highest = tl.load(group_peaks + row * GROUPS + group, mask=group < GROUPS, other=float("-inf"))
        nearest = distance_below(highest, peak, temperature).to(tl.int32, bitcast=True)
        mass = tl.sum(tl.load(masses + at, mask=real, other=0.0) * tl.exp(-behind), axis=0)
        chosen = _cut_race(
            all_logits + row * stride_row, vocab, peak, temperature, top_k, top_p, min_p,
            step_key(tl.load(seeds + row), tl.load(steps + row)), nearest, mass, chosen,
            group_lists + row * BLOCK_GROUPS, scratches + row * TILE, GROUP, BLOCK, TILE, FARTHEST,
        )  # fmt: skip
    tl.store(tokens + row, chosen.to(tl.int64))


def launch(logits, temperature, top_k, top_p, min_p, seeds, steps):
    rows, vocab = logits.shape
    device = logits.device
    tokens = torch.empty(rows, dtype=torch.int64, device=device)
    if rows == 0:
        return tokens
    group = max(16, triton.next_power_of_2(triton.cdiv(vocab, MAX_GROUPS)))
    chunk_groups = max(1, CHUNK // group)
    chunks = triton.cdiv(vocab, chunk_groups * group)
    groups = chunks * chunk_groups
    block_groups = triton.next_power_of_2(groups)
    group_peaks = torch.empty((rows, groups), dtype=torch.float32, device=device)
    # not rows of one tensor: how addresses are aligned is part of what a kernel is compiled for
    peaks = torch.empty((rows, chunks), dtype=torch.float32, device=device)
    scores, masses = torch.empty_like(peaks), torch.empty_like(peaks)
    winners = torch.empty((rows, chunks), dtype=torch.int32, device=device)
    group_lists = torch.empty((rows, block_groups), dtype=torch.int32, device=device)
    scratch = torch.empty((rows, TILE), dtype=torch.int32, device=device)
    knobs = temperature, top_k, top_p, min_p, seeds, steps
    digest = group_peaks, peaks, scores, masses, winners
    _digest[(chunks, rows)](
        logits,
        *knobs,
        *digest,
        vocab,
        logits.stride(0),
        GROUP=group,
        CHUNK_GROUPS=chunk_groups,
        num_warps=8,
    )
    _choose[(rows,)](
        logits,
        *knobs,
        *digest,
        group_lists,
        scratch,
        tokens,
        vocab,
        logits.stride(0),
        CHUNKS=chunks,
        GROUPS=groups,
        BLOCK_CHUNKS=triton.next_power_of_2(chunks),
        BLOCK_GROUPS=block_groups,
        GROUP=group,
        BLOCK=max(group, CHUNK),
        TILE=TILE,
        FARTHEST=FARTHEST_WINNER,
        num_warps=8,
    )
    return tokens
