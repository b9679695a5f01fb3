"""Which blocks a page holds, what is lost at its edges, and which size is chosen."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from onecard.engines.memory.page_size import (
    blocks_in_page,
    choose_page_bytes,
    edge_waste,
    min_blocks_in_page,
)

KIB, MIB = 1 << 10, 1 << 20
PAGES_MIB = (2, 8, 16, 32, 64)
# KiB of a block of 16 tokens -> percent lost with each page size, on the arena's grid / packed page by page.
WASTE = {
    "Qwen2.5-0.5B": (192, "6.2/6.2 1.6/1.6 0.8/0.4 0.4/0.4 0.2/0.1"),
    "Qwen2.5-1.5B": (448, "18.8/12.5 4.7/1.6 2.3/1.6 1.2/0.2 0.6/0.2"),
    "Qwen2.5-3B": (576, "25.0/15.6 6.2/1.6 3.1/1.6 1.6/1.6 0.8/0.7"),
    "Qwen2.5-7B": (896, "37.5/12.5 9.4/1.6 4.7/1.6 2.3/1.6 1.2/0.2"),
    "Qwen3-0.6B": (1792, "75.0/12.5 18.8/12.5 9.4/1.6 4.7/1.6 2.3/1.6"),
    "Llama-3.1-8B": (2048, "0.0/0.0 0.0/0.0 0.0/0.0 0.0/0.0 0.0/0.0"),
    "Qwen3-8B": (2304, "100.0/100.0 25.0/15.6 12.5/1.6 6.2/1.6 3.1/1.6"),
    "Qwen2.5-14B": (3072, "100.0/100.0 25.0/25.0 12.5/6.2 6.2/6.2 3.1/1.6"),
    "Whisper large-v3": (2560, "100.0/100.0 25.0/6.2 12.5/6.2 6.2/6.2 3.1/2.3"),
    "Whisper turbo": (320, "12.5/6.2 3.1/2.3 1.6/0.4 0.8/0.4 0.4/0.4"),
}


def packed_waste(page_bytes: int, block_bytes: int) -> float:
    """If blocks were packed from each page's start instead of lying on one grid: a lower bound."""
    return 1.0 - (page_bytes // block_bytes) * block_bytes / page_bytes


@pytest.mark.parametrize("model", WASTE)
def test_waste_of_known_models(model):
    kib, expected = WASTE[model]
    found = [
        f"{100 * edge_waste(p * MIB, kib * KIB):.1f}/{100 * packed_waste(p * MIB, kib * KIB):.1f}"
        for p in PAGES_MIB
    ]
    assert found == expected.split()


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 60))
def test_blocks_of_pages_lie_inside_and_are_all_there_is(page_bytes, block_bytes, num_pages):
    pages = [blocks_in_page(p, page_bytes, block_bytes) for p in range(num_pages)]
    for page, blocks in enumerate(pages):
        for block in range(page * page_bytes // block_bytes, (page + 1) * page_bytes // block_bytes + 1):
            inside = (
                page * page_bytes <= block * block_bytes
                and (block + 1) * block_bytes <= (page + 1) * page_bytes
            )
            assert (block in blocks) == inside
    assert min_blocks_in_page(page_bytes, block_bytes, num_pages) == min(map(len, pages))
    used = sum(map(len, pages)) * block_bytes
    assert edge_waste(page_bytes, block_bytes, num_pages) == pytest.approx(
        1 - used / (num_pages * page_bytes)
    )
    if num_pages % block_bytes == 0:
        assert edge_waste(page_bytes, block_bytes) == pytest.approx(1 - used / (num_pages * page_bytes))


def test_one_model_loses_nothing_at_page_edges():
    page = choose_page_bytes([1792 * KIB], 60 << 30)
    assert edge_waste(page, 1792 * KIB) == 0


def test_a_common_multiple_is_taken_where_it_is_small_enough():
    page = choose_page_bytes([192 * KIB, 448 * KIB], 8 << 30)
    assert page % (192 * KIB) == page % (448 * KIB) == 0


@given(st.lists(st.integers(1 * KIB, 4 * MIB), min_size=1, max_size=5), st.integers(64 * MIB, 80 << 30))
def test_a_chosen_page_holds_every_block_and_leaves_enough_pages_to_share(blocks, arena):
    page = choose_page_bytes(blocks, arena)
    assert all(min_blocks_in_page(page, block, arena // page) >= 1 for block in blocks)
    assume(arena >= 64 * max(blocks))  # a smaller one has too few pages or loses much, whatever their size
    assert min(16, arena // (2 * max(blocks))) // 2 <= arena // page <= 4096
    assert max(edge_waste(page, block, arena // page) for block in blocks) <= 0.25


def test_a_tiny_arena_and_none_at_all():
    assert choose_page_bytes([], 0) == MIB
    assert choose_page_bytes([720 * KIB], 100) >= 720 * KIB
