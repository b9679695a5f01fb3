"""Engines that compute nothing: the real scheduler, pools, queue and cost model around a model of seconds.

Only the forward pass is made up; what runs, when, with which blocks, and who is preempted for whom is decided
by the code that serves.
"""

from dataclasses import dataclass, field, replace
from itertools import count
from typing import Protocol

from onecard.engines.api import SamplingParams, TokenChunk
from onecard.engines.memory.block_pool import BlockPool
from onecard.engines.memory.page_pool import PagePool
from onecard.engines.memory.page_size import blocks_in_page
from onecard.engines.oneshot.queue import Entry, Queued, TokenBudgetQueue
from onecard.engines.paged.kv_cache_manager import KVCacheManager
from onecard.engines.paged.request import Request, Sequence, Status
from onecard.engines.paged.schedule import Schedule
from onecard.engines.paged.scheduler import Scheduler, SchedulerLimits
from onecard.engines.paged.stream import TokenStream
from onecard.engines.runtime.step_budget import StepBudget, StepShape
from simulator.cards import StepSeconds, StepWork
from simulator.results import Served
from simulator.workloads import Arrival


class StuckError(RuntimeError):
    """Requests wait that nothing can ever run: they need more memory than their engine may have."""


@dataclass(frozen=True)
class SimulatedStep:
    """A launched step: `seconds` it takes, and what it computes."""

    seconds: float
    shape: StepShape
    batch: Schedule | list[Entry]


class SimulatedEngine(Protocol):
    name: str
    weight: float
    served: list[Served]
    preempted_tokens: int

    move_blocks = None

    def add(self, arrival: Arrival) -> None: ...

    def has_work(self) -> bool: ...

    def priority(self) -> int:
        """That of the most urgent request."""
        ...

    def launch(self, now: float, seconds: float | None) -> SimulatedStep | None:
        """A step of about `seconds` (None: of any length); None where nothing can run."""
        ...

    def collect(self, step: SimulatedStep, now: float) -> None: ...


@dataclass(frozen=True)
class Share:
    """An engine's part of a page pool."""

    floor_pages: int
    ceiling_pages: int


class _Tokens:
    """An answer's text is of no interest here."""

    def append(self, token_id: int, logprob: object) -> TokenChunk:
        return TokenChunk(0, "", (token_id,))


class SimulatedLLM:
    """The scheduler, KV manager and block pool of a language model."""

    def __init__(
        self,
        name: str,
        pages: PagePool,
        share: Share,
        block_bytes: int,
        step_seconds: StepSeconds,
        limits: SchedulerLimits,
        *,
        block_size: int = 16,
        caching: bool = False,
        weight: float = 1.0,
    ) -> None:
        self.name, self.weight = name, weight
        self.served: list[Served] = []
        self.preempted_tokens = 0
        blocks = BlockPool(
            name,
            pages,
            lambda page: blocks_in_page(page, pages.page_bytes, block_bytes),
            caching,
            requests=self,
        )
        pages.add_engine(name, share.floor_pages, share.ceiling_pages, blocks)
        limits = replace(limits, resume_headroom=blocks.blocks_per_page)
        self._scheduler = Scheduler(KVCacheManager(blocks, block_size, name), limits)
        self._step_seconds = step_seconds
        self._budget = StepBudget()
        self._tokens = count()
        self._by_request: dict[str, Served] = {}

    def add(self, arrival: Arrival) -> None:
        (length,) = arrival.lengths
        prompt = [next(self._tokens) for _ in range(length)]
        request = Request(
            request_id=f"{len(self.served):08d}",
            prompt_token_ids=prompt,
            sampling=SamplingParams(max_tokens=arrival.output_tokens, ignore_eos=True),
            max_tokens=arrival.output_tokens,
            arrival_time=arrival.time,
            stream=TokenStream(prompt, None, 1),
            priority=arrival.priority,
        )
        request.sequences = [Sequence(request, 0, 0, list(prompt), _Tokens())]
        self.served.append(Served(arrival))
        self._by_request[request.request_id] = self.served[-1]
        self._scheduler.add(request)

    def has_work(self) -> bool:
        return self._scheduler.has_work()

    def priority(self) -> int:
        first = [line[0] for line in (self._scheduler.running, self._scheduler.waiting) if line]
        return min(sequence.request.priority for sequence in first)

    def launch(self, now: float, seconds: float | None) -> SimulatedStep | None:
        schedule = self._scheduler.schedule(now, self._max_tokens(seconds))
        self.preempted_tokens += sum(sequence.num_tokens for sequence in schedule.preempted)
        if schedule.too_large:
            raise StuckError(
                f"{self.name}: a request of {schedule.too_large[0].num_tokens} tokens never fits"
            )
        if not schedule.items:
            return None
        return SimulatedStep(self._step_seconds(_work(schedule)), schedule.shape, schedule)

    def collect(self, step: SimulatedStep, now: float) -> None:
        assert isinstance(step.batch, Schedule)
        self._budget.observe(step.shape, step.seconds)
        for item in step.batch.items:
            sequence = item.sequence
            if item.samples:
                self._append(sequence, now)
            if sequence.status is Status.RUNNING:
                self._scheduler.kv.cache_computed(sequence)

    def _append(self, sequence: Sequence, now: float) -> None:
        sequence.num_in_flight -= 1
        sequence.append(next(self._tokens))
        served = self._by_request[sequence.request.request_id]
        served.times.append(now)
        if sequence.num_output_tokens >= sequence.request.max_tokens:
            self._scheduler.finish(sequence)
            served.finished = True

    def _max_tokens(self, seconds: float | None) -> int | None:
        """As `llm.core.PagedCore` bounds a step."""
        decodes = [s for s in self._scheduler.running if s.num_uncomputed_tokens == 1]
        beside = StepShape(len(decodes), len(decodes), sum(s.num_tokens for s in decodes))
        prompts = self._budget.tokens(seconds, beside, self._scheduler.kv.block_size)
        return None if prompts is None else len(decodes) + prompts

    def waiting_blocks(self) -> int:
        return sum(self._scheduler.kv.blocks_for(s.num_tokens) for s in self._scheduler.waiting)

    def preempt_newest(self) -> bool:
        if not self._scheduler.running:
            return False
        sequence = self._scheduler.running[-1]
        self._scheduler.preempt(sequence)
        self.preempted_tokens += sequence.num_tokens
        return True


def _work(schedule: Schedule) -> StepWork:
    ends = [item.start + item.num_tokens for item in schedule.items]
    pairs = sum(item.num_tokens * (item.start + item.num_tokens / 2) for item in schedule.items)
    return StepWork(schedule.num_tokens, len(schedule.items), sum(ends), pairs)


@dataclass
class SimulatedEncoder:
    """The token-budget queue of an embedding model or a reranker."""

    name: str
    step_seconds: StepSeconds
    queue: TokenBudgetQueue
    weight: float = 1.0
    served: list[Served] = field(default_factory=list)
    preempted_tokens: int = 0
    _missing: dict[Queued, tuple[Served, int]] = field(default_factory=dict)
    _budget: StepBudget = field(default_factory=StepBudget)

    def add(self, arrival: Arrival) -> None:
        queued = Queued(arrival.priority)
        self.served.append(Served(arrival))
        self._missing[queued] = self.served[-1], len(arrival.lengths)
        self.queue.add(queued, [[0] * length for length in arrival.lengths])

    def has_work(self) -> bool:
        return len(self.queue) > 0

    def priority(self) -> int:
        return self.queue.priority

    def launch(self, now: float, seconds: float | None) -> SimulatedStep | None:
        entries = self.queue.take(time=self._budget.texts(seconds))
        shape = StepShape.of_texts([len(entry.token_ids) for entry in entries])
        work = StepWork(shape.tokens, shape.sequences, 0, shape.context)
        return SimulatedStep(self.step_seconds(work), shape, entries)

    def collect(self, step: SimulatedStep, now: float) -> None:
        assert isinstance(step.batch, list)
        self._budget.observe(step.shape, step.seconds)
        for entry in step.batch:
            served, missing = self._missing[entry.queued]
            self._missing[entry.queued] = served, missing - 1
            if missing == 1:
                served.times.append(now)
                served.finished = True
                del self._missing[entry.queued]
