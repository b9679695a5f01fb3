"""Prefill: a program for each tile of queries of one sequence and one K/V head.

A tile's rows are queries times the heads that share the K/V head, so a tile of K is read once for the whole
group: row r is query r // GROUP of the tile, head r % GROUP of the group.
"""

import triton
import triton.language as tl

from onecard.kernels.triton.softmax import fold_tile

ROW_TILE = 64
KEY_TILE = 64


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
    window,
    block_size,
    stride_q: tl.int64,
    stride_q_head,
    stride_out: tl.int64,
    stride_table: tl.int64,
    stride_block: tl.int64,
    stride_token,
    stride_head,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    sequence = (first_sequence + tl.program_id(1)).to(tl.int64)
    kv_head = tl.program_id(2)
    start = tl.load(cu_seqlens_q + sequence)
    queries_here = tl.load(cu_seqlens_q + sequence + 1) - start
    length = tl.load(seq_lens + sequence)
    first = tl.program_id(0) * BLOCK_Q
    if (first < queries_here) & (length > 0):
        row = tl.arange(0, BLOCK_M)
        column = tl.arange(0, BLOCK_D)
        query = first + row // GROUP
        head = kv_head * GROUP + row % GROUP
        real = (row < BLOCK_Q * GROUP) & (query < queries_here)
        inside = real[:, None] & (column < DIM)[None, :]
        token = (start + query).to(tl.int64)
        q_at = q + token[:, None] * stride_q + head[:, None] * stride_q_head + column[None, :]
        queries = tl.load(q_at, mask=inside, other=0.0)
        position = length - queries_here + query
        begin = 0
        if window > 0:
            begin = tl.maximum(length - queries_here + first - window + 1, 0)
        end = length
        if CAUSAL:
            end = tl.minimum(length - queries_here + first + BLOCK_Q, length)
        peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        sums = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        for tile in range(begin, end, BLOCK_N):
            key = tile + tl.arange(0, BLOCK_N)
            block = tl.load(
                block_tables + sequence * stride_table + key // block_size, mask=key < end, other=0
            )
            # 64 bits: an arena has more than 2^31 elements
            at = block.to(tl.int64) * stride_block + (key % block_size) * stride_token + kv_head * stride_head
            # masked by length: bytes past it may be another model's NaN, and 0 * NaN is NaN
            alive = (key < end)[:, None] & (column < DIM)[None, :]
            keys = tl.load(k_cache + at[:, None] + column[None, :], mask=alive, other=0.0)
            values = tl.load(v_cache + at[:, None] + column[None, :], mask=alive, other=0.0)
            if CAUSAL:
                visible = real[:, None] & (key[None, :] <= position[:, None])
            else:
                visible = real[:, None] & (key < end)[None, :]
            if window > 0:
                visible = visible & (key[None, :] > position[:, None] - window)
            peak, total, sums = fold_tile(queries, keys, values, visible, scale_log2, peak, total, sums)
        result = sums / tl.where(total == 0.0, 1.0, total)[:, None]
        out_at = out + token[:, None] * stride_out + head[:, None] * DIM + column[None, :]
        tl.store(out_at, result.to(out.dtype.element_ty), mask=inside)


def launch_prefill(q, k_cache, v_cache, paged, scale_log2, window, causal, out):
    """Fill the rows of the sequences after the decodes; padded sequences keep what out holds."""
    _, heads, dim = q.shape
    kv_heads = k_cache.shape[2]
    group = heads // kv_heads
    block_m = max(ROW_TILE, triton.next_power_of_2(group))
    block_q = block_m // group
    sequences = paged.seq_lens.numel() - paged.num_decodes
    _kernel[(triton.cdiv(paged.max_seqlen_q, block_q), sequences, kv_heads)](
        q,
        k_cache,
        v_cache,
        out,
        paged.block_tables,
        paged.seq_lens,
        paged.cu_seqlens_q,
        paged.num_decodes,
        scale_log2,
        window,
        k_cache.shape[1],
        q.stride(0),
        q.stride(1),
        out.stride(0),
        paged.block_tables.stride(0),
        k_cache.stride(0),
        k_cache.stride(1),
        k_cache.stride(2),
        GROUP=group,
        DIM=dim,
        BLOCK_D=max(16, triton.next_power_of_2(dim)),
        BLOCK_M=block_m,
        BLOCK_Q=block_q,
        BLOCK_N=KEY_TILE,
        CAUSAL=causal,
    )
