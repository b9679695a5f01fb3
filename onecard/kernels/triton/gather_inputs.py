"""Inputs of a decode step, one sequence a program: its token, its place, what it needs of its table."""

import triton
import triton.language as tl

CHUNK = 1024


@triton.jit(do_not_specialize=["row_ids", "starts"])
def _kernel(
    row_ids,
    starts,
    last_token,
    rows_tables,
    input_ids,
    positions,
    slot_mapping,
    seq_lens,
    block_tables,
    width,
    stride_row: tl.int64,
    stride_out: tl.int64,
    BLOCK_SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    row = tl.load(row_ids + i).to(tl.int64)
    start = tl.load(starts + i)
    token = tl.full((), 0, tl.int64)
    slot = tl.full((), -1, tl.int64)
    length = tl.full((), 0, tl.int32)
    place = tl.full((), 0, tl.int32)
    if row >= 0:
        place = start
        length = start + 1
        token = tl.load(last_token + row)
        table = rows_tables + row * stride_row
        block = tl.load(table + start // BLOCK_SIZE).to(tl.int64)
        slot = block * BLOCK_SIZE + start % BLOCK_SIZE
        used = tl.minimum(tl.cdiv(length, BLOCK_SIZE), width)
        for first in range(0, used, CHUNK):
            column = first + tl.arange(0, CHUNK)
            inside = column < used
            blocks = tl.load(table + column, mask=inside, other=0)
            tl.store(block_tables + i * stride_out + column, blocks, mask=inside)
    tl.store(input_ids + i, token)
    tl.store(positions + i, place.to(tl.int64))
    tl.store(slot_mapping + i, slot)
    tl.store(seq_lens + i, length)


def launch(
    row_ids,
    starts,
    last_token,
    rows_tables,
    block_size,
    input_ids,
    positions,
    slot_mapping,
    seq_lens,
    block_tables,
):
    if row_ids.numel() == 0:
        return
    _kernel[(row_ids.numel(),)](
        row_ids,
        starts,
        last_token,
        rows_tables,
        input_ids,
        positions,
        slot_mapping,
        seq_lens,
        block_tables,
        rows_tables.shape[1],
        rows_tables.stride(0),
        block_tables.stride(0),
        BLOCK_SIZE=block_size,
        CHUNK=CHUNK,
    )
