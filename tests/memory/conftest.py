"""Fakes for the memory tests: a clock that counts, a pool of engines with requests to preempt."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

import pytest

from onecard.engines.memory.block_pool import BlockPool
from onecard.engines.memory.page_pool import PagePool
from onecard.engines.memory.page_size import blocks_in_page

PAGE = 64 * 1024


def ticking() -> Callable[[], float]:
    """A clock that is one later at every look."""
    ticks: Iterator[int] = count(1)
    return lambda: float(next(ticks))


@dataclass
class FakeEngine:
    """An engine whose requests are lists of blocks, oldest first; a preempted one waits.

    `moves` are the pairs of blocks that were moved. While `stepping`, nothing can be preempted.
    """

    name: str
    page_pool: PagePool
    block_bytes: int
    floor: int
    ceiling: int
    cost: float = 1.0
    requests: list[list[int]] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    moves: dict[int, int] = field(default_factory=dict)
    stepping: bool = False

    def __post_init__(self) -> None:
        self.pool = BlockPool(
            self.name,
            self.page_pool,
            lambda page: blocks_in_page(page, self.page_pool.page_bytes, self.block_bytes),
            cost_per_block=self.cost,
            requests=self,
        )
        self.page_pool.add_engine(self.name, self.floor, self.ceiling, self.pool)

    def waiting_blocks(self) -> int:
        return sum(self.waiting)

    def start(self, blocks: int, prefix: bytes | None = None) -> list[int] | None:
        """A request of new blocks; with a `prefix` its blocks are cached as `prefix` 0, 1, 2, ..."""
        got = self.pool.get_new_blocks(blocks)
        if got is not None:
            self.requests.append(got)
            for i, block in enumerate(got if prefix is not None else ()):
                self.pool.cache_full_block(block, (prefix or b"") + bytes([i]), [i])
        return got

    def cached(self, prefix: bytes, blocks: int) -> list[int]:
        """How much of a prefix is still there."""
        found = [self.pool.lookup(prefix + bytes([i]), [i]) for i in range(blocks)]
        return [block for block in found if block is not None]

    def end(self, request: list[int]) -> None:
        self.requests.remove(request)
        self.pool.free(request[::-1])

    def move_blocks(self, moves: dict[int, int]) -> None:
        self.moves |= moves
        for request in self.requests:
            request[:] = [moves.get(block, block) for block in request]

    def pages(self, request: list[int]) -> set[int]:
        """The pages that a request's blocks lie in."""
        return {block * self.block_bytes // self.page_pool.page_bytes for block in request}

    def preempt_newest(self) -> bool:
        if not self.requests or self.stepping:
            return False
        newest = self.requests.pop()
        self.waiting.append(len(newest))
        self.pool.free(newest[::-1])
        return True

    def check(self) -> None:
        self.pool.check_integrity()
        self.page_pool.check_integrity()


@pytest.fixture
def page_pool() -> PagePool:
    """Eight pages of 64 KiB."""
    return PagePool(8, PAGE, ticking())


@pytest.fixture
def engine(page_pool: PagePool) -> Callable[..., FakeEngine]:
    """Makes engines in `page_pool`; blocks of 16 KiB (four a page) where nothing else is said."""

    def make(
        name: str, floor: int = 0, ceiling: int = 8, block_bytes: int = 16 * 1024, cost: float = 1.0
    ) -> FakeEngine:
        return FakeEngine(name, page_pool, block_bytes, floor, ceiling, cost)

    return make
