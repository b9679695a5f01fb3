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


def _period(page_bytes: int, block_bytes: int) -> int:
    """Pages after which page boundaries cut the block grid in the same way again."""
    return block_bytes // math.gcd(page_bytes, block_bytes)


def min_blocks_in_page(page_bytes: int, block_bytes: int, num_pages: int | None = None) -> int:
    """The fewest blocks that any page (of the first `num_pages`) holds: what a page is sure to give."""
    if num_pages is None or num_pages >= _period(page_bytes, block_bytes):
        # Some page starts this far from the next block, and none farther.
        gap = block_bytes - math.gcd(page_bytes, block_bytes)
        return max(0, (page_bytes - gap) // block_bytes)
    return min((len(blocks_in_page(p, page_bytes, block_bytes)) for p in range(num_pages)), default=0)


def edge_waste(page_bytes: int, block_bytes: int, num_pages: int | None = None) -> float:
    """Share of the bytes of an arena (of `num_pages`, or endless) that a layout loses at page edges, 0..1."""
    if page_bytes < block_bytes:
        return 1.0
    period = _period(page_bytes, block_bytes)
    pages = period if num_pages is None else num_pages
    cut = pages - -(-pages // period)
    used = (pages * page_bytes // block_bytes - cut) * block_bytes
    return 1.0 - used / (pages * page_bytes) if pages else 0.0


def _candidates(block_sizes: Sequence[int], smallest: int) -> Iterable[int]:
    """Powers of two, and multiples of each block and of all blocks, from `smallest` to 8 times that."""
    power = 1 << max(16, (smallest - 1).bit_length())
    yield from (power << i for i in range(3))
    for unit in {*block_sizes, math.lcm(*block_sizes)}:
        first = -(-smallest // unit)
        yield from (unit * k for k in range(first, first + 8) if unit * k <= 8 * smallest)


def choose_page_bytes(block_sizes: Sequence[int], arena_bytes: int, homes: Sequence[int] = ()) -> int:
    """The page size that wastes least, for engines with blocks of these bytes in an arena of `arena_bytes`
    and weights of `homes` bytes.

    Waste is what the worst layout loses at page edges, what homes lose where they end, and half a page that
    each engine holds partly filled. A common multiple of all block sizes loses nothing at edges, where it is
    small enough.
    """
    if not block_sizes:
        return max(1 << 20, 1 << (arena_bytes // _LARGEST_COUNT).bit_length())
    largest = max(block_sizes)
    smallest = max(
        largest,
        -(-arena_bytes // _LARGEST_COUNT),
        min(_BLOCKS_PER_PAGE * largest, arena_bytes // _SMALLEST_COUNT),
    )

    def waste(page: int) -> float:
        edges = max(edge_waste(page, block, max(1, arena_bytes // page)) for block in block_sizes)
        ends = arena_bytes % page + sum(-home % page for home in homes)
        return edges + (ends + len(block_sizes) * page / 2) / max(arena_bytes, 1)

    candidates = set(_candidates(block_sizes, smallest))
    fitting = {p for p in candidates if all(min_blocks_in_page(p, block) for block in block_sizes)}
    return min(fitting or {2 * largest}, key=lambda page: (waste(page), page))
