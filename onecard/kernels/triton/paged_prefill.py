"""Prefill: a program for each tile of queries of one sequence and one K/V head.

A tile's rows are queries times the heads that share the K/V head, so a tile of K is read once for the whole
group: row r is query r // GROUP of the tile, head r % GROUP of the group. Late tiles, which see the most
keys, come first, so that none begins when all others are done; only tiles of keys at the diagonal, at a
window's far edge and at the sequence's end are masked.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from onecard.kernels.triton.softmax import fold_tile, wide_tile

ROOMY = 164 << 10
"""Shared bytes of a multiprocessor of server cards since Ampere, or more; others have 100 KiB."""


@dataclass(frozen=True)
class Tiles:
    """Rows of queries and heads, keys, and what a program has for them."""

    rows: int
    keys: int
    warps: int
    stages: int


def tiles(block_d: int, wide: bool, windowed: bool, roomy: bool) -> Tiles:
    """As large as registers hold without spilling on Hopper (benchmarks/kernel_resources.py).

    wide: a 4-byte type. windowed: there are two edges with masks.
    """
    if wide:
        rows, keys = wide_tile(block_d)
        return Tiles(rows, 16 if windowed else keys, warps=4, stages=3)
    if not roomy:
        return Tiles(rows=64, keys=64 if block_d <= 128 else 32, warps=4, stages=2)
    largest = 64 if windowed else 128
    return Tiles(rows=128, keys=largest if block_d <= 128 else 32, warps=8, stages=3)


@triton.jit
def _walk(
    begin,
    end,
    queries,
    position,
    length,
    k_cache,
    v_cache,
    table,
    scale_log2,
    peak,
    total,
    sums,
    stride_block,
    stride_token,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    CAUSAL: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Fold the keys begin .. end; not MASKED, all of them exist and all rows see them."""
    column = tl.arange(0, BLOCK_D)
    for tile in range(begin, end, BLOCK_N):
        key = tile + tl.arange(0, BLOCK_N)
        visible = None
        if MASKED:
            block = tl.load(table + key // BLOCK_SIZE, mask=key < length, other=0)
            visible = (key < length)[None, :]
            if CAUSAL:
                visible = key[None, :] <= position[:, None]
            if WINDOW > 0:
                visible = visible & (key[None, :] > position[:, None] - WINDOW)
        else:
            block = tl.load(table + key // BLOCK_SIZE)
        # 64 bits: an arena has more than 2^31 elements
        at = block.to(tl.int64) * stride_block + key % BLOCK_SIZE * stride_token
        if MASKED:
            # by length: bytes past it may be another model's NaN, and 0 * NaN is NaN
            alive = (key < length)[:, None] & (column < DIM)[None, :]
            keys = tl.load(k_cache + at[:, None] + column[None, :], mask=alive, other=0.0)
            values = tl.load(v_cache + at[:, None] + column[None, :], mask=alive, other=0.0)
        elif DIM < BLOCK_D:
            alive = (column < DIM)[None, :]
            keys = tl.load(k_cache + at[:, None] + column[None, :], mask=alive, other=0.0)
            values = tl.load(v_cache + at[:, None] + column[None, :], mask=alive, other=0.0)
        else:
            keys = tl.load(k_cache + at[:, None] + column[None, :])
            values = tl.load(v_cache + at[:, None] + column[None, :])
        peak, total, sums = fold_tile(queries, keys, values, visible, scale_log2, peak, total, sums)
    return peak, total, sums


@triton.jit(do_not_specialize=["block_tables", "seq_lens", "cu_seqlens_q", "first_sequence", "stride_table"])
def _kernel(
    q,
    k_cache,
    v_cache,
    out,
    block_tables,
    seq_lens,
    cu_seqlens_q,
    first_sequence,
    scale_log2,
    stride_q: tl.int64,
    stride_q_head,
    stride_out: tl.int64,
    stride_table: tl.int64,
    stride_block,
    stride_token,
    stride_head,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    kv_head = tl.program_id(0)
    sequence = (first_sequence + tl.program_id(1)).to(tl.int64)
    first = (tl.num_programs(2) - 1 - tl.program_id(2)) * BLOCK_Q
    start = tl.load(cu_seqlens_q + sequence)
    queries_here = tl.load(cu_seqlens_q + sequence + 1) - start
    if first < queries_here:
        length = tl.load(seq_lens + sequence)
        row = tl.arange(0, BLOCK_M)
        column = tl.arange(0, BLOCK_D)
        query = first + row // GROUP
        head = kv_head * GROUP + row % GROUP
        inside = ((row < BLOCK_Q * GROUP) & (query < queries_here))[:, None] & (column < DIM)[None, :]
        token = (start + query).to(tl.int64)
        q_at = q + token[:, None] * stride_q + head[:, None] * stride_q_head + column[None, :]
        queries = tl.load(q_at, mask=inside, other=0.0)
        offset = length - queries_here
        begin, end = 0, length
        plain_begin, plain_end = 0, length  # keys that all rows see, as far as begin and end go
        if CAUSAL:
            end = tl.minimum(offset + first + BLOCK_Q, length)
            plain_end = tl.minimum(offset + first + 1, length)
        if WINDOW > 0:
            begin = tl.maximum(offset + first - WINDOW + 1, 0)
            plain_begin = tl.maximum(offset + first + BLOCK_Q - WINDOW, 0)
        plain_begin = begin + tl.cdiv(plain_begin - begin, BLOCK_N) * BLOCK_N
        plain_end = plain_begin + tl.maximum(plain_end - plain_begin, 0) // BLOCK_N * BLOCK_N
        position = offset + query
        k_head, v_head = k_cache + kv_head * stride_head, v_cache + kv_head * stride_head
        table = block_tables + sequence * stride_table
        peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        sums = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        if WINDOW > 0:
            peak, total, sums = _walk(
                begin, tl.minimum(plain_begin, end), queries, position, length, k_head, v_head, table,
                scale_log2, peak, total, sums, stride_block, stride_token,
                DIM, BLOCK_D, BLOCK_N, BLOCK_SIZE, WINDOW, CAUSAL, True,
            )  # fmt: skip
        peak, total, sums = _walk(
            plain_begin, plain_end, queries, position, length, k_head, v_head, table,
            scale_log2, peak, total, sums, stride_block, stride_token,
            DIM, BLOCK_D, BLOCK_N, BLOCK_SIZE, WINDOW, CAUSAL, False,
        )  # fmt: skip
        peak, total, sums = _walk(
            plain_end, end, queries, position, length, k_head, v_head, table,
            scale_log2, peak, total, sums, stride_block, stride_token,
            DIM, BLOCK_D, BLOCK_N, BLOCK_SIZE, WINDOW, CAUSAL, True,
        )  # fmt: skip
        result = sums / tl.where(total == 0.0, 1.0, total)[:, None]
        out_at = out + token[:, None] * stride_out + head[:, None] * DIM + column[None, :]
        tl.store(out_at, result.to(out.dtype.element_ty), mask=inside)


def launch_prefill(q, k_cache, v_cache, paged, scale_log2, window, causal, out):
    """Fill the rows of the sequences after the decodes."""
    _, heads, dim = q.shape
    kv_heads = k_cache.shape[2]
    group = heads // kv_heads
    block_d = max(16, triton.next_power_of_2(dim))
    window = window if causal else 0
    tile = tiles(block_d, q.element_size() == 4, window > 0, _is_roomy(q.device))
    block_m = max(tile.rows, triton.next_power_of_2(group))
    block_q = block_m // group
    sequences = paged.seq_lens.numel() - paged.num_decodes
    _kernel[(kv_heads, sequences, triton.cdiv(paged.max_seqlen_q, block_q))](
        q,
        k_cache,
        v_cache,
        out,
        paged.block_tables,
        paged.seq_lens,
        paged.cu_seqlens_q,
        paged.num_decodes,
        scale_log2,
        q.stride(0),
        q.stride(1),
        out.stride(0),
        paged.block_tables.stride(0),
        k_cache.stride(0),
        k_cache.stride(1),
        k_cache.stride(2),
        GROUP=group,
        DIM=dim,
        BLOCK_D=block_d,
        BLOCK_M=block_m,
        BLOCK_Q=block_q,
        BLOCK_N=tile.keys,
        BLOCK_SIZE=k_cache.shape[1],
        WINDOW=window,
        CAUSAL=causal,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def _is_roomy(device: torch.device) -> bool:
    if device.type != "cuda":  # the interpreter, or a card that is played
        return True
    return torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor >= ROOMY
