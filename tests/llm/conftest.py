"""Requests and pools for tests that need no model."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from onecard.engines.api import SamplingParams, TokenChunk
from onecard.engines.llm.kv_cache_manager import KVCacheManager
from onecard.engines.llm.request import Request, Sequence
from onecard.engines.llm.scheduler import Schedule, Scheduler, SchedulerLimits
from onecard.engines.llm.stream import TokenStream
from onecard.engines.memory.block_pool import BlockPool
from onecard.engines.memory.page_pool import PagePool

BLOCK_SIZE = 4
BLOCKS_PER_PAGE = 2


class NoOutput:
    """An output side that never ends an answer."""

    def append(self, token_id: int, logprob: object) -> TokenChunk:
        return TokenChunk(0, "", (token_id,))


@dataclass
class World:
    """A scheduler on a page pool of its own; `run` plays the model: it computes a step and samples token
    7."""

    pages: PagePool
    pool: BlockPool
    scheduler: Scheduler
    time: float = 0.0

    def request(self, prompt: list[int], n: int = 1, arrival: float | None = None, **params) -> Request:
        self.time += 1
        sampling = SamplingParams(n=n, **params)
        request = Request(
            f"r{self.time}", prompt, sampling, 1000, arrival or self.time, TokenStream(prompt, None, n)
        )
        request.sequences = [Sequence(request, i, i, list(prompt), NoOutput()) for i in range(n)]
        self.scheduler.add(request)
        return request

    def run(self) -> Schedule:
        schedule = self.scheduler.schedule(self.time)
        for item in schedule.items:
            samples, before = item.samples, item.sequence.num_computed_tokens
            item.sequence.num_computed_tokens += item.num_tokens
            self.scheduler.kv.cache_computed(item.sequence, before)
            if samples:
                item.sequence.token_ids.append(7)
        self.check()
        return schedule

    def check(self) -> None:
        """What must hold between steps: the pools' books, and the sequences' own invariant."""
        self.pool.check_integrity()
        self.pages.check_integrity()
        for sequence in self.scheduler.running:
            assert sequence.num_computed_tokens < sequence.num_tokens
            assert len(sequence.block_table) * BLOCK_SIZE >= sequence.num_computed_tokens
        for sequence in self.scheduler.waiting:
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
