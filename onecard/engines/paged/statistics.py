"""What a paged engine reports of its steps and answers."""

import time
from collections.abc import Iterable
from functools import partial

from onecard.engines.api import FinishReason, RequestStats, StepStats
from onecard.engines.paged.request import Sequence, Status
from onecard.engines.paged.schedule import Schedule
from onecard.engines.paged.scheduler import Scheduler
from onecard.engines.step.core import StatsButTimes


class Statistics:
    """One an engine, on the device loop's thread."""

    def __init__(self, model: str, scheduler: Scheduler):
        self._model = model
        self._scheduler = scheduler
        self._preemptions = 0
        self._prefix_queries = 0
        self._prefix_hits = 0
        self._num_deferred = 0
        self._first: list[float] = []
        """Times to first token, and then between tokens, of the sequences that got one in the step."""
        self._later: list[float] = []
        self._prompt_tokens = self._cached_tokens = 0
        """Of those that got their first."""

    def recalled(self) -> None:
        """A sequence was preempted between two steps, because another engine wanted its floor back."""
        self._preemptions += 1

    def scheduled(self, schedule: Schedule) -> None:
        """Scheduling has come to this, whether the step runs or not: the next one that does reports it."""
        self._preemptions += len(schedule.preempted)
        self._prefix_queries += schedule.prefix_queries
        self._prefix_hits += schedule.prefix_hits
        self._num_deferred = schedule.num_deferred

    def read(self, sequences: Iterable[Sequence], now: float) -> None:
        """A step of these was read at `now`; they are told, too."""
        self._first, self._later = [], []
        self._prompt_tokens = self._cached_tokens = 0
        for sequence in sequences:
            if sequence.status is Status.FINISHED:
                continue
            if sequence.last_token_time is None:
                sequence.first_token_time = now
                self._first.append(now - sequence.request.arrival_time)
                self._prompt_tokens += sequence.num_prompt_tokens
                self._cached_tokens += min(sequence.num_cached_tokens, sequence.num_prompt_tokens)
            else:
                self._later.append(now - sequence.last_token_time)
            sequence.last_token_time = now

    def step(self) -> StatsButTimes:
        pool = self._scheduler.kv.pool
        stats = partial(
            StepStats,
            model=self._model,
            num_running=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting),
            kv_usage=pool.num_used_blocks / max(pool.max_blocks, 1),
            prompt_tokens=self._prompt_tokens,
            cached_prompt_tokens=self._cached_tokens,
            num_deferred=self._num_deferred,
            generation_tokens=len(self._first) + len(self._later),
            prefix_queries=self._prefix_queries,
            prefix_hits=self._prefix_hits,
            preemptions=self._preemptions,
            first_token_seconds=tuple(self._first),
            inter_token_seconds=tuple(self._later),
        )
        self._preemptions = self._prefix_queries = self._prefix_hits = 0
        return stats

    def request(self, sequence: Sequence, reason: FinishReason) -> RequestStats:
        request, now = sequence.request, time.monotonic()
        scheduled, first = sequence.first_scheduled_time, sequence.first_token_time
        return RequestStats(
            model=self._model,
            finish_reason=reason,
            prompt_tokens=sequence.num_prompt_tokens,
            generation_tokens=sequence.num_output_tokens,
            cached_tokens=sequence.num_cached_tokens,
            preemptions=sequence.num_preemptions,
            n=request.sampling.n,
            max_tokens=request.max_tokens,
            e2e_seconds=now - request.arrival_time,
            queue_seconds=None if scheduled is None else scheduled - request.arrival_time,
            prefill_seconds=None if first is None or scheduled is None else first - scheduled,
            decode_seconds=None if first is None else now - first,
        )
