"""The arena's bytes: there when they are written, gone when they are discarded."""

import mmap

import psutil
import pytest
import torch

from onecard.engines.memory.arena import DeviceArena

MIB = 1 << 20


def test_pages_are_cut_from_the_start():
    arena = DeviceArena(10 * 4096 + 17, 4096)
    assert (arena.num_pages, arena.nbytes, len(arena.tensor)) == (10, 40960, 40960)
    assert (arena.tensor.dtype, arena.device.type) == (torch.uint8, "cpu")
    assert DeviceArena(100, 4096).nbytes == 0


@pytest.mark.parametrize(("nbytes", "page_bytes"), [(-1, 4096), (4096, 0)])
def test_no_arena_of_nonsense(nbytes, page_bytes):
    with pytest.raises(ValueError, match="can't be cut"):
        DeviceArena(nbytes, page_bytes)


def test_more_than_there_is_says_what_to_do():
    with pytest.raises(MemoryError, match="give the card less `memory:`"):
        DeviceArena(1 << 60, 1 << 20)


def test_memory_is_taken_when_written_and_goes_back_when_discarded():
    process = psutil.Process()
    arena = DeviceArena(256 * MIB, MIB)
    before = process.memory_info().rss
    arena.tensor[: 64 * MIB].fill_(1)
    used = process.memory_info().rss - before
    assert 48 * MIB < used < 100 * MIB
    arena.discard(range(16, 64))
    assert process.memory_info().rss - before < used - 40 * MIB
    assert bool((arena.tensor[: 16 * MIB] == 1).all()), "only those pages"


def test_discarding_leaves_neighbours_that_share_a_page_of_the_system():
    page = mmap.PAGESIZE // 2 * 3
    arena = DeviceArena(page * 4, page)
    arena.tensor.fill_(7)
    arena.discard(range(1, 3))
    assert bool((arena.tensor[:page] == 7).all())
    assert bool((arena.tensor[3 * page :] == 7).all())
    arena.discard(range(2, 2))


def test_the_memory_outlives_the_arena_while_a_view_does():
    view = DeviceArena(4 * 4096, 4096).tensor[:4096]
    view.fill_(3)
    assert int(view.sum()) == 3 * 4096
