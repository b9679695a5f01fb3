"""The grid of pages and blocks: which blocks lie in a page, what is lost, which page size loses least.

Block b of an engine occupies bytes `b * block_bytes .. (b + 1) * block_bytes` of the arena, page p bytes
`p * page_bytes .. (p + 1) * page_bytes`. An engine may only use blocks that lie wholly inside its pages; a
block that a page boundary cuts is lost:

    pages   |       0       |       1       |       2       |
    blocks  |  0  |  1  |  x  |  3  |  4  |  x  |  6  |  7  |      x: cut, never used
"""

import math
from collections.abc import Iterable, Sequence

_LARGEST_COUNT = 4096
"""More pages than this make books and snapshots slow without sharing any finer."""
_BLOCKS_PER_PAGE = 8
"""A page of fewer blocks changes hands too often ..."""
_SMALLEST_COUNT = 64
"""... but an arena of fewer pages than this can hardly be shared."""


def blocks_in_page(page: int, page_bytes: int, block_bytes: int) -> range:
    """Ids of the blocks that lie wholly inside `page`; empty when none does."""
    first = -(-page * page_bytes // block_bytes)
    return range(first, max(first, (page + 1) * page_bytes // block_bytes))


def _cycle(page_bytes: int, block_bytes: int, num_pages: int | None) -> range:
    """Pages after which boundaries fall on the block grid in the same way again."""
    period = block_bytes // math.gcd(page_bytes, block_bytes)
    return range(period if num_pages is None else min(period, num_pages))


def min_blocks_in_page(page_bytes: int, block_bytes: int, num_pages: int | None = None) -> int:
    """The fewest blocks that any page holds: what a page is sure to give."""
    cycle = _cycle(page_bytes, block_bytes, num_pages)
    return min((len(blocks_in_page(p, page_bytes, block_bytes)) for p in cycle), default=0)


def edge_waste(page_bytes: int, block_bytes: int, num_pages: int | None = None) -> float:
    """Share of the bytes of an arena (of `num_pages`, or endless) that a layout loses at page edges, 0..1."""
    cycle = _cycle(page_bytes, block_bytes, num_pages)
    used = sum(len(blocks_in_page(p, page_bytes, block_bytes)) for p in cycle) * block_bytes
    return 1.0 - used / (len(cycle) * page_bytes) if cycle else 0.0


def packed_waste(page_bytes: int, block_bytes: int) -> float:
    """The same if blocks were packed from each page's start instead of lying on one grid: a lower bound."""
    return 1.0 - (page_bytes // block_bytes) * block_bytes / page_bytes


def _candidates(block_sizes: Sequence[int], smallest: int) -> Iterable[int]:
    """Powers of two, and multiples of each block and of all blocks, from `smallest` to 8 times that."""
    power = 1 << max(16, (smallest - 1).bit_length())
    yield from (power << i for i in range(3))
    for unit in {*block_sizes, math.lcm(*block_sizes)}:
        first = -(-smallest // unit)
        yield from (unit * k for k in range(first, first + 8) if unit * k <= 8 * smallest)


def choose_page_bytes(block_sizes: Sequence[int], arena_bytes: int) -> int:
    """The page size that wastes least, for engines with blocks of these bytes in an arena of `arena_bytes`.

    Waste is what the worst layout loses at page edges, plus half a page that each engine holds partly filled.
    A common multiple of all block sizes loses nothing at edges, where it is small enough.
    """
    if not block_sizes:
        return 1 << 20
    largest = max(block_sizes)
    smallest = max(
        largest,
        -(-arena_bytes // _LARGEST_COUNT),
        min(_BLOCKS_PER_PAGE * largest, arena_bytes // _SMALLEST_COUNT),
    )

    def waste(page: int) -> float:
        edges = max(edge_waste(page, block, max(1, arena_bytes // page)) for block in block_sizes)
        return edges + (arena_bytes % page + len(block_sizes) * page / 2) / max(arena_bytes, 1)

    fitting = {p for p in _candidates(block_sizes, smallest) if min_blocks_in_page(p, largest)}
    return min(fitting or {largest}, key=lambda page: (waste(page), page))
