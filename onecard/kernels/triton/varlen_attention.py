"""Attention inside packed sequences: one tile of queries of one head of one sequence a program (Dao 2023)."""

import math

import torch
import triton
import triton.language as tl

from onecard.kernels.triton.softmax import fold_tile, wide_tile

QUERY_TILE = 64
KEY_TILE = 64


@triton.jit(do_not_specialize=["cu_seqlens"])
def _kernel(
    q,
    k,
    v,
    out,
    cu_seqlens,
    scale_log2,
    stride_q: tl.int64,
    stride_k: tl.int64,
    stride_v: tl.int64,
    stride_out: tl.int64,
    stride_q_head,
    stride_k_head,
    stride_v_head,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    sequence, head = tl.program_id(1), tl.program_id(2)
    start = tl.load(cu_seqlens + sequence).to(tl.int64)
    length = (tl.load(cu_seqlens + sequence + 1) - start).to(tl.int32)
    first = tl.program_id(0) * BLOCK_M
    if first < length:
        row = first + tl.arange(0, BLOCK_M)
        column = tl.arange(0, BLOCK_D)
        inside = (row < length)[:, None] & (column < DIM)[None, :]
        q_at = q + head * stride_q_head + (start + row)[:, None] * stride_q + column[None, :]
        queries = tl.load(q_at, mask=inside, other=0.0)
        peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        sums = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        end = length
        if CAUSAL:
            end = tl.minimum(length, first + BLOCK_M)
        for tile in range(0, end, BLOCK_N):
            key = tile + tl.arange(0, BLOCK_N)
            alive = (key < length)[:, None] & (column < DIM)[None, :]
            token = (start + key)[:, None]
            keys = tl.load(
                k + head * stride_k_head + token * stride_k + column[None, :], mask=alive, other=0.0
            )
            values = tl.load(
                v + head * stride_v_head + token * stride_v + column[None, :], mask=alive, other=0.0
            )
            visible = (key < length)[None, :] & (row < length)[:, None]
            if CAUSAL:
                visible = visible & (key[None, :] <= row[:, None])
            peak, total, sums = fold_tile(queries, keys, values, visible, scale_log2, peak, total, sums)
        result = sums / tl.where(total == 0.0, 1.0, total)[:, None]
        out_at = out + head * DIM + (start + row)[:, None] * stride_out + column[None, :]
        tl.store(out_at, result.to(out.dtype.element_ty), mask=inside)


def launch(q, k, v, cu_seqlens, max_seqlen, scale, causal=False):
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    _, heads, dim = q.shape
    if q.numel() == 0 or max_seqlen == 0:
        return out
    block_d = max(16, triton.next_power_of_2(dim))
    rows, keys = wide_tile(block_d) if q.element_size() == 4 else (QUERY_TILE, KEY_TILE)
    grid = (triton.cdiv(max_seqlen, rows), cu_seqlens.numel() - 1, heads)
    _kernel[grid](
        q,
        k,
        v,
        out,
        cu_seqlens,
        scale * math.log2(math.e),
        q.stride(0),
        k.stride(0),
        v.stride(0),
        out.stride(0),
        q.stride(1),
        k.stride(1),
        v.stride(1),
        DIM=dim,
        BLOCK_D=block_d,
        BLOCK_M=rows,
        BLOCK_N=keys,
        CAUSAL=causal,
    )
    return out
