"""Split-KV decode ("flash decoding", Dao et al. 2023): a program for each K/V head and share of the keys.

The grid follows from the batch's shape alone, so that a captured graph holds for any lengths: a program for
each sequence, and so many more. Which keys are a program's follows from the lengths when the kernel runs. All
shares of a batch are about as large: one long sequence among short ones gets nearly all the programs that are
left over, of sequences of one length each gets its part. A second kernel adds shares up by their log-sum-exp.
"""

import torch
import triton
import triton.language as tl

from onecard.kernels.paged_attention import decode_splits
from onecard.kernels.triton.softmax import fold_tile

KEY_TILE = 64
TILE_BYTES = 16 << 10
"""Of K and of V each, twice: one tile is multiplied while the next one is on its way. Three programs of that
size have room on a streaming multiprocessor."""
SMALLEST_SHARE = 128
"""Keys: two tiles, which are on their way at the same time."""
LENGTHS = 256
"""How many sequences' lengths a program looks at in one go."""


@triton.jit
def _seen(seq_lens, sequence, sequences, WINDOW: tl.constexpr):
    """How many keys sequences see; 0 past the batch's end."""
    length = tl.load(seq_lens + sequence, mask=sequence < sequences, other=0)
    return tl.minimum(length, WINDOW) if WINDOW > 0 else length


@triton.jit
def _own_share(seen, share, MAX_SPLITS: tl.constexpr, BLOCK_N: tl.constexpr):
    """Keys of a program of a sequence: the batch's share, or more, lest it be split too often."""
    return tl.maximum(share, tl.cdiv(tl.cdiv(seen, MAX_SPLITS), BLOCK_N) * BLOCK_N)


@triton.jit
def _place(
    seq_lens,
    sequences,
    program,
    WINDOW: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    SMALLEST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LENGTHS: tl.constexpr,
):
    """Whose keys a program takes: (sequence, the first of its programs, the batch's share).

    With K keys in all and E programs more than sequences a share has K / E keys or more, so that the
    sequences' last, smaller shares are no more than there are sequences.
    """
    lane = tl.arange(0, LENGTHS)
    keys = tl.full((), 0, tl.int32)
    for start in range(0, sequences, LENGTHS):
        keys += tl.sum(_seen(seq_lens, start + lane, sequences, WINDOW), axis=0)
    spare = tl.num_programs(1) - sequences
    share = tl.maximum(tl.cdiv(tl.cdiv(keys, spare), BLOCK_N) * BLOCK_N, SMALLEST)
    sequence, first, before = tl.full((), 0, tl.int32), tl.full((), 0, tl.int32), tl.full((), 0, tl.int32)
    for start in range(0, sequences, LENGTHS):
        seen = _seen(seq_lens, start + lane, sequences, WINDOW)
        splits = tl.maximum(tl.cdiv(seen, _own_share(seen, share, MAX_SPLITS, BLOCK_N)), 1)
        splits = tl.where(start + lane < sequences, splits, 0)
        ends = before + tl.cumsum(splits, axis=0)
        passed = (ends <= program) & (start + lane < sequences)
        sequence += tl.sum(passed.to(tl.int32), axis=0)
        first = tl.maximum(first, tl.max(tl.where(passed, ends, 0), axis=0))
        before += tl.sum(splits, axis=0)
    return sequence, first, share


@triton.jit(do_not_specialize=["block_tables", "seq_lens", "sequences", "stride_table"])
def _split(
    q,
    k_cache,
    v_cache,
    block_tables,
    seq_lens,
    out,
    part_sums,
    part_lse,
    parts,
    sequences,
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
    BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    SMALLEST: tl.constexpr,
    LENGTHS: tl.constexpr,
):
    kv_head, program = tl.program_id(0), tl.program_id(1)
    sequence, first, share = _place(
        seq_lens, sequences, program, WINDOW, MAX_SPLITS, SMALLEST, BLOCK_N, LENGTHS
    )
    if sequence < sequences:
        length = tl.load(seq_lens + sequence)
        seen = tl.minimum(length, WINDOW) if WINDOW > 0 else length
        share = _own_share(seen, share, MAX_SPLITS, BLOCK_N)
        begin = length - seen + (program - first) * share
        end = tl.minimum(begin + share, length)
        row = tl.arange(0, BLOCK_M)
        column = tl.arange(0, BLOCK_D)
        head = kv_head * GROUP + row
        inside = (row < GROUP)[:, None] & (column < DIM)[None, :]
        q_at = q + sequence * stride_q + head[:, None] * stride_q_head + column[None, :]
        queries = tl.load(q_at, mask=inside, other=0.0)
        table = block_tables + sequence * stride_table
        peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        sums = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        for tile in range(begin, end, BLOCK_N):
            key = tile + tl.arange(0, BLOCK_N)
            block = tl.load(table + key // BLOCK_SIZE, mask=key < end, other=0)
            # 64 bits: an arena has more than 2^31 elements
            at = block.to(tl.int64) * stride_block + (key % BLOCK_SIZE * stride_token + kv_head * stride_head)
            # masked by length: bytes past it may be another model's NaN, and 0 * NaN is NaN
            alive = (key < end)[:, None] & (column < DIM)[None, :]
            keys = tl.load(k_cache + at[:, None] + column[None, :], mask=alive, other=0.0)
            values = tl.load(v_cache + at[:, None] + column[None, :], mask=alive, other=0.0)
            visible = (key < end)[None, :]
            peak, total, sums = fold_tile(queries, keys, values, visible, scale_log2, peak, total, sums)
        filled = tl.where(total == 0.0, 1.0, total)
        result = sums / filled[:, None]
        if seen <= share:  # nothing to add up
            out_at = out + sequence * stride_out + head[:, None] * DIM + column[None, :]
            tl.store(out_at, result.to(out.dtype.element_ty), mask=inside)
        else:
            part = (program * tl.num_programs(0) * GROUP + head).to(tl.int64)
            tl.store(part_lse + part, peak * scale_log2 + tl.log2(filled), mask=row < GROUP)
            tl.store(part_sums + part[:, None] * DIM + column[None, :], result, mask=inside)
        if (program == first) & (kv_head == 0):
            tl.store(parts + 2 * sequence, first)
            tl.store(parts + 2 * sequence + 1, tl.cdiv(seen, share))


@triton.jit
def _reduce(
    part_sums,
    part_lse,
    parts,
    out,
    stride_out: tl.int64,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
):
    head, sequence = tl.program_id(0), tl.program_id(1)
    first, splits = tl.load(parts + 2 * sequence), tl.load(parts + 2 * sequence + 1)
    if splits > 1:
        split = tl.arange(0, MAX_SPLITS)
        column = tl.arange(0, BLOCK_D)
        part = (first + split).to(tl.int64) * tl.num_programs(0) + head
        lse = tl.load(part_lse + part, mask=split < splits, other=float("-inf"))
        weights = tl.exp2(lse - tl.max(lse, axis=0))
        inside = (split < splits)[:, None] & (column < DIM)[None, :]
        sums = tl.load(part_sums + part[:, None] * DIM + column[None, :], mask=inside, other=0.0)
        result = tl.sum(sums * weights[:, None], axis=0) / tl.sum(weights, axis=0)
        out_at = out + sequence * stride_out + head * DIM + column
        tl.store(out_at, result.to(out.dtype.element_ty), mask=column < DIM)


def launch_decode(q, k_cache, v_cache, paged, scale_log2, window, out):
    """Fill rows 0 .. num_decodes of out."""
    decodes, (_, heads, dim) = paged.num_decodes, q.shape
    kv_heads = k_cache.shape[2]
    programs = decode_splits.decode_programs(decodes, kv_heads)
    block_d = max(16, triton.next_power_of_2(dim))
    fitting = TILE_BYTES // (block_d * k_cache.element_size())
    part_sums = torch.empty((programs, heads, dim), dtype=torch.float32, device=q.device)
    part_lse = torch.empty((programs, heads), dtype=torch.float32, device=q.device)
    parts = torch.empty((decodes, 2), dtype=torch.int32, device=q.device)
    _split[(kv_heads, programs)](
        q,
        k_cache,
        v_cache,
        paged.block_tables,
        paged.seq_lens,
        out,
        part_sums,
        part_lse,
        parts,
        decodes,
        scale_log2,
        q.stride(0),
        q.stride(1),
        out.stride(0),
        paged.block_tables.stride(0),
        k_cache.stride(0),
        k_cache.stride(1),
        k_cache.stride(2),
        GROUP=heads // kv_heads,
        DIM=dim,
        BLOCK_D=block_d,
        BLOCK_M=max(16, triton.next_power_of_2(heads // kv_heads)),
        BLOCK_N=min(KEY_TILE, max(16, fitting)),
        BLOCK_SIZE=k_cache.shape[1],
        WINDOW=window,
        MAX_SPLITS=decode_splits.MAX_SPLITS,
        SMALLEST=SMALLEST_SHARE,
        LENGTHS=LENGTHS,
        num_stages=5,  # the table's load, then K's and V's, are two stages ahead of each other
    )
    _reduce[(heads, decodes)](
        part_sums,
        part_lse,
        parts,
        out,
        out.stride(0),
        DIM=dim,
        BLOCK_D=block_d,
        MAX_SPLITS=decode_splits.MAX_SPLITS,
    )
