"""How decodes share out their keys: each key to one program, a long sequence to many, at any lengths."""

import pytest
import torch
import triton
import triton.language as tl
from paged_cases import DEVICE

from onecard.kernels.paged_attention.decode_splits import decode_programs, partial_bytes
from onecard.kernels.triton.paged_decode import _own_share, _place, _seen

MAX_SPLITS, SMALLEST, TILE = 8, 32, 16
"""Small ones, for the interpreter."""


@triton.jit
def _places(
    seq_lens,
    result,
    sequences,
    WINDOW: tl.constexpr,  # noqa: N803
    MAX_SPLITS: tl.constexpr,  # noqa: N803
    SMALLEST: tl.constexpr,  # noqa: N803
    BLOCK_N: tl.constexpr,  # noqa: N803
    LENGTHS: tl.constexpr,  # noqa: N803
):
    program = tl.program_id(1)
    sequence, first, share = _place(
        seq_lens, sequences, program, WINDOW, MAX_SPLITS, SMALLEST, BLOCK_N, LENGTHS
    )
    seen = _seen(seq_lens, sequence, sequences, WINDOW)
    tl.store(result + 3 * program, sequence)
    tl.store(result + 3 * program + 1, program - first)
    tl.store(result + 3 * program + 2, _own_share(seen, share, MAX_SPLITS, BLOCK_N))


def places(lengths: list[int], spare: int, window: int = 0, at_once: int = 4) -> list[tuple[int, int, int]]:
    """(sequence, the program's number among its own, keys of one) of every program."""
    seq_lens = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    result = torch.zeros(len(lengths) + spare, 3, dtype=torch.int32, device=DEVICE)
    grid = (1, len(result))
    _places[grid](seq_lens, result, len(lengths), window, MAX_SPLITS, SMALLEST, TILE, at_once)
    return [tuple(row) for row in result.tolist()]


@pytest.mark.parametrize("window", [0, 70])
@pytest.mark.parametrize(
    "lengths", [[1], [500], [0, 0, 0], [33] * 9, [4000, 40, 40, 40, 40, 40], [40, 0, 1, 700, 33, 32, 31]]
)
def test_every_key_is_one_programs(lengths: list[int], window: int) -> None:
    seen = [min(n, window) if window else n for n in lengths]
    taken: dict[int, int] = {}
    for sequence, part, share in places(lengths, spare=12, window=window):
        if sequence < len(lengths):
            assert part == taken.get(sequence, 0)
            assert part * share < max(seen[sequence], 1), "a program without keys"
            taken[sequence] = part + 1
    shares = {sequence: share for sequence, _, share in places(lengths, spare=12, window=window)}
    for sequence, n in enumerate(seen):
        assert taken[sequence] * shares[sequence] >= n
        assert taken[sequence] <= MAX_SPLITS


def test_one_sequence_a_hundred_times_the_others_is_taken_by_many() -> None:
    found = places([20] * 15 + [2000], spare=16)
    assert sum(sequence == 15 for sequence, _, _ in found) == MAX_SPLITS
    found = places([20] * 15 + [300], spare=16)  # 600 keys, so a share is 600 / 16, in whole tiles
    assert sum(sequence == 15 for sequence, _, _ in found) == -(-300 // 48)


def test_equal_sequences_are_split_alike() -> None:
    counts = torch.bincount(torch.tensor([s for s, _, _ in places([256] * 4, spare=16)]), minlength=5)
    assert counts[:4].tolist() == [4] * 4


def test_lengths_looked_at_in_several_goes_are_placed_as_in_one() -> None:
    lengths = [5, 100, 0, 700, 31, 32, 33]
    assert places(lengths, 10, at_once=2) == places(lengths, 10, at_once=8)


def test_the_grid_follows_from_the_batch_alone_and_its_memory_is_planned() -> None:
    for sequences in (1, 7, 64, 256):
        for kv_heads in (1, 4, 8, 32):
            programs = decode_programs(sequences, kv_heads)
            assert sequences < programs
            assert partial_bytes(sequences, 4 * kv_heads, kv_heads, 64) >= programs * 4 * kv_heads * 65 * 4
