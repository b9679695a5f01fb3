"""Requests and pools for tests that need no model."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from onecard.engines.api import SamplingParams, TokenChunk
from onecard.engines.memory.block_pool import BlockPool
from onecard.engines.memory.page_pool import PagePool
from onecard.engines.paged.kv_cache_manager import KVCacheManager
from onecard.engines.paged.request import Request, Sequence, Status
from onecard.engines.paged.schedule import Schedule
from onecard.engines.paged.scheduler import Scheduler, SchedulerLimits
from onecard.engines.paged.stream import TokenStream

BLOCK_SIZE = 4
BLOCKS_PER_PAGE = 2


class NoOutput:
    """An output side that never ends an answer."""

    def append(self, token_id: int, logprob: object) -> TokenChunk:
        return TokenChunk(0, "", (token_id,))


@dataclass
class World:
    """A scheduler on a page pool of its own; `run` plays the model: it computes a step and samples token 7.

    `launch` and `read` are the halves of `run`, for steps that overlap.
    """

    pages: PagePool
    pool: BlockPool
    scheduler: Scheduler
    time: float = 0.0

    def request(
        self,
        prompt: list[int],
        n: int = 1,
        arrival: float | None = None,
        priority: int = 0,
        group: str = "",
        **params,
    ) -> Request:
        self.time += 1
        sampling = SamplingParams(n=n, **params)
        request = Request(
            f"r{self.time}",
            prompt,
            sampling,
            1000,
            arrival or self.time,
            TokenStream(prompt, None, n),
            priority,
            group=group,
        )
        request.sequences = [Sequence(request, i, i, list(prompt), NoOutput()) for i in range(n)]
        self.scheduler.add(request)
        return request

    def run(self) -> Schedule:
        schedule = self.launch()
        self.read(schedule)
        return schedule

    def launch(self) -> Schedule:
        schedule = self.scheduler.schedule(self.time)
        self.check()
        return schedule

    def read(self, schedule: Schedule) -> None:
        for item in schedule.items:
            if item.samples:
                item.sequence.num_in_flight -= 1
                if item.sequence.status is not Status.FINISHED:
                    item.sequence.append(7)
            if item.sequence.status is Status.RUNNING:
                self.scheduler.kv.cache_computed(item.sequence)
        self.check()

    def check(self) -> None:
        """What must hold between steps: the pools' books, and the sequences' own invariant."""
        self.pool.check_integrity()
        self.pages.check_integrity()
        for sequence in self.scheduler.running:
            assert sequence.num_computed_tokens < sequence.num_tokens
            assert len(sequence.block_table) * BLOCK_SIZE >= sequence.num_computed_tokens
        for sequence in [*self.scheduler.waiting, *self.scheduler.paused]:
            assert not sequence.block_table
            assert sequence.num_computed_tokens == 0

    def all_free(self) -> bool:
        self.pool.reset_prefix_cache()
        self.pool.release_idle_pages()
        self.check()
        return self.pages.free_pages == self.pages.num_pages


@pytest.fixture
def world() -> Callable[..., World]:
    def make(num_pages: int = 50, caching: bool = True, floor: int | None = None, **limits) -> World:
        pages = PagePool(num_pages, 1024)
        pool = BlockPool(
            "m", pages, lambda page: range(page * BLOCKS_PER_PAGE, (page + 1) * BLOCKS_PER_PAGE), caching
        )
        pages.add_engine("m", num_pages if floor is None else floor, num_pages, pool)
        settings = {"max_num_seqs": 8, "max_num_batched_tokens": 16, **limits}
        return World(
            pages, pool, Scheduler(KVCacheManager(pool, BLOCK_SIZE, "m"), SchedulerLimits(**settings))
        )

    return make
