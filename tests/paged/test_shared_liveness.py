"""Several schedulers on one page pool: while anybody waits somebody gets on, and what can run ends."""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onecard.engines.api import SamplingParams, TokenChunk
from onecard.engines.memory.block_pool import BlockPool
from onecard.engines.memory.page_pool import PagePool
from onecard.engines.paged.kv_cache_manager import KVCacheManager
from onecard.engines.paged.request import Request, Sequence, Status
from onecard.engines.paged.schedule import Schedule
from onecard.engines.paged.scheduler import Scheduler, SchedulerLimits
from onecard.engines.paged.stream import TokenStream

BLOCK_SIZE, BLOCKS_PER_PAGE = 4, 2
PAGE_TOKENS = BLOCK_SIZE * BLOCKS_PER_PAGE


class NoOutput:
    def append(self, token_id: int, logprob: object) -> TokenChunk:
        return TokenChunk(0, "", (token_id,))


@dataclass
class Share:
    floor: int
    ceiling: int


class Engine:
    """A scheduler and what `PagedCore` does for it; `step` launches one and reads the one `lag` before."""

    def __init__(
        self, name: str, pages: PagePool, share: Share, lag: int = 0, caching: bool = True, **limits
    ):
        self.name, self.lag, self.num_sampled = name, lag, 0
        self.pool = BlockPool(
            name,
            pages,
            lambda p: range(BLOCKS_PER_PAGE * p, BLOCKS_PER_PAGE * (p + 1)),
            caching,
            requests=self,
        )
        pages.add_engine(name, share.floor, share.ceiling, self.pool)
        settled = {
            "max_num_seqs": 8,
            "max_num_batched_tokens": 16,
            "resume_headroom": BLOCKS_PER_PAGE,
            **limits,
        }
        self.scheduler = Scheduler(KVCacheManager(self.pool, BLOCK_SIZE, name), SchedulerLimits(**settled))
        self.sequences: list[Sequence] = []
        self._unread: list[Schedule] = []

    move_blocks = None

    def waiting_blocks(self) -> int:
        return self.scheduler.waiting.blocks

    def preempt_newest(self) -> bool:
        if not self.scheduler.running:
            return False
        self.scheduler.preempt(self.scheduler.running[-1])
        return True

    def request(self, prompt: list[int], max_tokens: int) -> Sequence:
        number = len(self.sequences)
        request = Request(
            f"{self.name}{number}",
            prompt,
            SamplingParams(max_tokens=max_tokens),
            max_tokens,
            float(number),
            TokenStream(prompt, None, 1),
        )
        request.sequences = [Sequence(request, 0, 0, list(prompt), NoOutput())]
        self.scheduler.add(request)
        self.sequences += request.sequences
        return request.sequences[0]

    def step(self) -> Schedule:
        schedule = self.scheduler.schedule(0.0)
        self._unread.append(schedule)
        if len(self._unread) > self.lag:
            self._read(self._unread.pop(0))
        return schedule

    def _read(self, schedule: Schedule) -> None:
        for item in schedule.items:
            sequence = item.sequence
            if item.samples:
                self.num_sampled += 1
                sequence.num_in_flight -= 1
                sequence.append(len(sequence.token_ids) % 3)
                if sequence.num_output_tokens == sequence.request.max_tokens:
                    self.scheduler.finish(sequence)
            if sequence.status is Status.RUNNING:
                self.scheduler.kv.cache_computed(sequence)


@dataclass
class Job:
    engine: int
    prompt: int
    output: int
    family: int
    begins: int


@dataclass
class Card:
    num_pages: int
    shares: list[Share]
    jobs: list[Job]
    budget: int
    max_num_seqs: int
    caching: bool
    lag: int
    seed: int
    engines: list[Engine] = field(default_factory=list)


@st.composite
def cards(draw: st.DrawFn) -> Card:
    """Floors take up to the whole pool; every request fits its engine's ceiling if it is alone."""
    num_pages = draw(st.integers(4, 12))
    shares, left = [], num_pages
    for _ in range(draw(st.integers(2, 3))):
        floor = draw(st.integers(0, left))
        left -= floor
        shares.append(Share(floor, draw(st.integers(max(floor, 2), num_pages))))
    jobs = []
    for _ in range(draw(st.integers(2, 9))):
        engine = draw(st.integers(0, len(shares) - 1))
        most = shares[engine].ceiling * PAGE_TOKENS
        prompt = draw(st.integers(1, most))
        output = draw(st.integers(1, most - prompt + 1))
        jobs.append(Job(engine, prompt, output, draw(st.integers(0, 2)), draw(st.integers(0, 40))))
    return Card(
        num_pages,
        shares,
        jobs,
        budget=draw(st.integers(3, 40)),
        max_num_seqs=draw(st.integers(1, 6)),
        caching=draw(st.booleans()),
        lag=draw(st.integers(0, 1)),
        seed=draw(st.integers(0, 1 << 16)),
    )


@settings(max_examples=300, deadline=None)
@given(cards())
def test_somebody_always_gets_on_and_everything_ends(card):
    pages = PagePool(card.num_pages, 1024)
    engines = [
        Engine(
            str(i),
            pages,
            share,
            card.lag,
            card.caching,
            max_num_seqs=card.max_num_seqs,
            max_num_batched_tokens=card.budget,
        )
        for i, share in enumerate(card.shares)
    ]
    turns, jobs = random.Random(card.seed), list(card.jobs)
    longest = max(job.prompt + job.output for job in jobs)
    # While one prefill after another is computed, each by at least a chunk a round, nobody samples.
    patience = 4 * len(jobs) * (longest // card.budget + 2) + 8
    since, before = 0, 0
    for now in range(100_000):
        for job in [job for job in jobs if job.begins <= now]:
            jobs.remove(job)
            engines[job.engine].request([(job.family * i) % 5 for i in range(job.prompt)], job.output)
        if not jobs and not any(engine.scheduler.has_work() for engine in engines):
            break
        for engine in turns.sample(engines, len(engines)):
            assert not engine.step().too_large
        pages.check_integrity()
        sampled = sum(engine.num_sampled for engine in engines)
        at_work = any(engine.scheduler.has_work() for engine in engines)
        since, before = since + 1 if sampled == before and at_work else 0, sampled
        assert since < patience, "nobody gets on"
    for engine in engines:
        assert all(s.status is Status.FINISHED for s in engine.sequences)
        engine.pool.check_integrity()


@pytest.mark.parametrize("floors", [(5, 5), (4, 4), (5, 2), (0, 0)])
@pytest.mark.parametrize(("prompt", "output"), [(36, 24), (30, 40), (60, 20)])
def test_two_requests_that_outgrow_their_floors_run_one_after_the_other(floors, prompt, output):
    pages = PagePool(10, 1024)
    engines = [Engine(name, pages, Share(floor, 10)) for name, floor in zip("ab", floors)]
    sequences = [engine.request([i] * prompt, output) for i, engine in enumerate(engines)]
    for _ in range(250):
        for engine in engines:
            engine.step()
    assert [s.status for s in sequences] == [Status.FINISHED] * 2
    assert sum(s.num_preemptions for s in sequences) <= 3, "they take pages from each other in turns"
