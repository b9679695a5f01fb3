"""Layouts share the arena's bytes without ever copying or colliding."""

from itertools import pairwise

import pytest
import torch

from onecard.engines.memory.arena import DeviceArena, KVLayout

PAGE = 64 * 1024
BF16 = KVLayout(num_layers=3, num_kv_heads=2, head_dim=32, block_size=16, dtype=torch.bfloat16)
FP32 = KVLayout(num_layers=5, num_kv_heads=3, head_dim=16, block_size=16, dtype=torch.float32)


@pytest.fixture
def arena() -> DeviceArena:
    """Eight pages, every byte of them 0xFF: NaN in every floating-point type."""
    arena = DeviceArena(8 * PAGE + 100, PAGE)
    arena.tensor.fill_(0xFF)
    return arena


def test_sizes(arena):
    assert (arena.num_pages, arena.nbytes, arena.tensor.dtype) == (8, 8 * PAGE, torch.uint8)
    assert (BF16.block_bytes, FP32.block_bytes) == (12 * 1024, 30 * 1024)
    assert BF16.view(arena).shape == (8 * PAGE // (12 * 1024), 3, 2, 16, 2, 32)


@pytest.mark.parametrize("layout", [BF16, FP32], ids=["bf16", "fp32"])
def test_views_alias_the_arena(arena, layout):
    kv = layout.view(arena)
    start, end = arena.tensor.data_ptr(), arena.tensor.data_ptr() + arena.nbytes
    assert kv.data_ptr() == start
    for layer in range(layout.num_layers):
        for half in range(2):
            cache = kv[:, layer, half]
            last = cache[-1, -1, -1, -1:].data_ptr() + layout.dtype.itemsize
            assert start <= cache.data_ptr() < last <= end
            assert cache.stride(0) * layout.dtype.itemsize == layout.block_bytes
            assert cache[0].is_contiguous()
    kv[1, 0, 0, 0, 0, 0] = 1.0
    assert arena.tensor[layout.block_bytes : layout.block_bytes + layout.dtype.itemsize].any()


def test_a_write_by_slot_through_a_layers_view_lands_in_the_arena(arena):
    kv = FP32.view(arena)
    keys = kv[:, 4, 0]
    block, offset = torch.tensor([3, 7]), torch.tensor([15, 0])
    values = torch.randn(2, 3, 16)
    keys[block, offset] = values
    at = 3 * FP32.block_bytes + ((4 * 2 + 0) * 16 + 15) * 3 * 16 * 4
    assert torch.equal(arena.tensor[at : at + 3 * 16 * 4].view(torch.float32).view(3, 16), values[0])


def byte_ranges(layout: KVLayout, pages: range) -> list[tuple[int, int]]:
    size = layout.block_bytes
    return [(b * size, (b + 1) * size) for p in pages for b in layout.blocks_in_page(p, PAGE)]


def test_layouts_on_alternating_pages_are_disjoint_and_isolated(arena):
    even, odd = range(0, 8, 2), range(1, 8, 2)
    ranges = sorted(byte_ranges(BF16, even) + byte_ranges(FP32, odd))
    assert all(end <= start for (_, end), (start, _) in pairwise(ranges))
    a, b = BF16.view(arena), FP32.view(arena)
    mine = torch.tensor([block for p in even for block in BF16.blocks_in_page(p, PAGE)])
    theirs = torch.tensor([block for p in odd for block in FP32.blocks_in_page(p, PAGE)])
    written_a = torch.randn(len(mine), *a.shape[1:]).bfloat16()
    written_b = torch.randn(len(theirs), *b.shape[1:])
    a[mine] = written_a
    b[theirs] = written_b
    a[mine, 1, 1] = written_a[:, 1, 1] * 2
    written_a[:, 1, 1] *= 2
    assert torch.equal(a[mine], written_a)
    assert torch.equal(b[theirs], written_b)


def test_a_page_taken_over_holds_stale_bytes_that_may_be_nan(arena):
    """What readers must expect: 0 x NaN is NaN, so loads beyond a sequence's length have to be masked."""
    ints = KVLayout(3, 2, 32, 16, torch.int16).view(arena)
    ints[:] = torch.randint(-(2**15), 2**15, ints.shape, dtype=torch.int16)
    block = BF16.view(arena)[BF16.blocks_in_page(0, PAGE)[0], 0, 0]
    ints[0, 0, 0, 5, 0, 0] = 0x7FC1
    assert block[5, 0, 0].isnan()
    probabilities = torch.zeros(16)
    probabilities[:5] = 0.2
    assert (probabilities @ block[:, 0, 0].float()).isnan()
    assert not (probabilities[:5] @ block[:5, 0, 0].float().nan_to_num()).isnan()


def test_an_arena_without_pages_is_fine_and_a_senseless_one_is_not():
    assert DeviceArena(0, PAGE).num_pages == 0
    with pytest.raises(ValueError, match="can't be cut"):
        DeviceArena(PAGE, 0)


def test_an_arena_that_is_too_large_says_what_to_change():
    with pytest.raises(MemoryError, match="less `memory:`"):
        DeviceArena(1 << 60, 1 << 40)
