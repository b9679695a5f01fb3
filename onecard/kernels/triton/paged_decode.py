"""Split-KV decode ("flash decoding", Dao et al. 2023): a program for each sequence, K/V head and share of the
keys.

The number of splits is fixed by the batch's shape, never by its lengths: a split takes its share of whatever
the sequence's length is when the kernel runs, and a second kernel adds the splits up by their log-sum-exp.
"""

import torch
import triton
import triton.language as tl

from onecard.kernels.triton.softmax import fold_tile

KEY_TILE = 64
MAX_SPLITS = 32
PROGRAMS_WANTED = 512
"""About four a streaming multiprocessor of a large card."""


@triton.jit(do_not_specialize=["block_tables", "seq_lens", "splits", "stride_table"])
def _split(
    q,
    k_cache,
    v_cache,
    block_tables,
    seq_lens,
    part_sums,
    part_lse,
    scale_log2,
    window,
    block_size,
    splits,
    stride_q: tl.int64,
    stride_q_head,
    stride_table: tl.int64,
    stride_block: tl.int64,
    stride_token,
    stride_head,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    sequence, kv_head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    length = tl.load(seq_lens + sequence)
    oldest = 0
    if window > 0:
        oldest = tl.maximum(length - window, 0)
    share = tl.cdiv(tl.cdiv(length - oldest, splits), BLOCK_N) * BLOCK_N
    begin = oldest + split * share
    end = tl.minimum(begin + share, length)
    row = tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_D)
    head = kv_head * GROUP + row
    inside = (row < GROUP)[:, None] & (column < DIM)[None, :]
    queries = tl.load(
        q + sequence * stride_q + head[:, None] * stride_q_head + column[None, :], mask=inside, other=0.0
    )
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    sums = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for tile in range(begin, end, BLOCK_N):
        key = tile + tl.arange(0, BLOCK_N)
        seen = key < end
        block = tl.load(block_tables + sequence * stride_table + key // block_size, mask=seen, other=0)
        # 64 bits: an arena has more than 2^31 elements
        at = block.to(tl.int64) * stride_block + (key % block_size) * stride_token + kv_head * stride_head
        # masked by length: bytes past it may be another model's NaN, and 0 * NaN is NaN
        alive = seen[:, None] & (column < DIM)[None, :]
        keys = tl.load(k_cache + at[:, None] + column[None, :], mask=alive, other=0.0)
        values = tl.load(v_cache + at[:, None] + column[None, :], mask=alive, other=0.0)
        visible = seen[None, :] & (row < GROUP)[:, None]
        peak, total, sums = fold_tile(queries, keys, values, visible, scale_log2, peak, total, sums)
    filled = tl.where(total == 0.0, 1.0, total)
    lse = tl.where(total == 0.0, float("-inf"), peak + tl.log2(filled))
    part = (sequence * tl.num_programs(1) * GROUP + head) * splits + split
    tl.store(part_lse + part, lse, mask=row < GROUP)
    tl.store(part_sums + part[:, None] * DIM + column[None, :], sums / filled[:, None], mask=inside)


@triton.jit(do_not_specialize=["splits"])
def _reduce(
    part_sums,
    part_lse,
    out,
    splits,
    stride_out: tl.int64,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    sequence, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    part = (sequence * tl.num_programs(1) + head) * splits
    split = tl.arange(0, BLOCK_S)
    column = tl.arange(0, BLOCK_D)
    lse = tl.load(part_lse + part + split, mask=split < splits, other=float("-inf"))
    peak = tl.max(lse, axis=0)
    weights = tl.exp2(lse - tl.where(peak == float("-inf"), 0.0, peak))
    inside = (split < splits)[:, None] & (column < DIM)[None, :]
    sums = tl.load(part_sums + (part + split)[:, None] * DIM + column[None, :], mask=inside, other=0.0)
    total = tl.sum(weights, axis=0)
    result = tl.sum(sums * weights[:, None], axis=0) / tl.where(total == 0.0, 1.0, total)
    tl.store(
        out + sequence * stride_out + head * DIM + column, result.to(out.dtype.element_ty), mask=column < DIM
    )


def launch_decode(q, k_cache, v_cache, paged, scale_log2, window, out):
    """Fill rows 0 .. num_decodes of out."""
    decodes, (_, heads, dim) = paged.num_decodes, q.shape
    kv_heads = k_cache.shape[2]
    group = heads // kv_heads
    splits = max(1, min(MAX_SPLITS, triton.cdiv(PROGRAMS_WANTED, decodes * kv_heads)))
    block_d = max(16, triton.next_power_of_2(dim))
    part_sums = torch.empty((decodes, heads, splits, dim), dtype=torch.float32, device=q.device)
    part_lse = torch.empty((decodes, heads, splits), dtype=torch.float32, device=q.device)
    _split[(decodes, kv_heads, splits)](
        q,
        k_cache,
        v_cache,
        paged.block_tables,
        paged.seq_lens,
        part_sums,
        part_lse,
        scale_log2,
        window,
        k_cache.shape[1],
        splits,
        q.stride(0),
        q.stride(1),
        paged.block_tables.stride(0),
        k_cache.stride(0),
        k_cache.stride(1),
        k_cache.stride(2),
        GROUP=group,
        DIM=dim,
        BLOCK_D=block_d,
        BLOCK_M=max(16, triton.next_power_of_2(group)),
        BLOCK_N=KEY_TILE,
    )
    _reduce[(decodes, heads)](
        part_sums,
        part_lse,
        out,
        splits,
        out.stride(0),
        DIM=dim,
        BLOCK_D=block_d,
        BLOCK_S=triton.next_power_of_2(MAX_SPLITS),
    )
