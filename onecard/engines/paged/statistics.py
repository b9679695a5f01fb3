"""What a paged engine reports of its steps and answers."""

import time
from dataclasses import dataclass, field
from functools import partial

from onecard.engines.api import FinishReason, RequestStats, StepStats
from onecard.engines.paged.request import Sequence, Status
from onecard.engines.paged.scheduler import Schedule, Scheduler
from onecard.engines.step.core import StatsButTimes


@dataclass
class TokenTimes:
    """Times to first token, and between tokens, of the sequences that got one in a step; and the prompt
    tokens of those that got their first."""

    first: list[float] = field(default_factory=list)
    later: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0


def token_times(sequences: list[Sequence], now: float) -> TokenTimes:
    """Of a step that was read at `now`; the sequences are told, too."""
    times = TokenTimes()
    for sequence in sequences:
        if sequence.status is Status.FINISHED:
            continue
        if sequence.last_token_time is None:
            sequence.first_token_time = now
            times.first.append(now - sequence.request.arrival_time)
            times.prompt_tokens += sequence.num_prompt_tokens
            times.cached_tokens += min(sequence.num_cached_tokens, sequence.num_prompt_tokens)
        else:
            times.later.append(now - sequence.last_token_time)
        sequence.last_token_time = now
    return times


class Statistics:
    """One an engine, on the device loop's thread."""

    def __init__(self, model: str, scheduler: Scheduler):
        self._model = model
        self._scheduler = scheduler
        self._preemptions = 0
        self._prefix_queries = 0
        self._prefix_hits = 0
        self._num_deferred = 0

    def recalled(self) -> None:
        """A sequence was preempted between two steps, because another engine wanted its floor back."""
        self._preemptions += 1

    def scheduled(self, schedule: Schedule) -> None:
        """Scheduling has come to this, whether the step runs or not: the next one that does reports it."""
        self._preemptions += len(schedule.preempted)
        self._prefix_queries += schedule.prefix_queries
        self._prefix_hits += schedule.prefix_hits
        self._num_deferred = schedule.num_deferred

    def step(self, times: TokenTimes) -> StatsButTimes:
        pool = self._scheduler.kv.pool
        stats = partial(
            StepStats,
            model=self._model,
            num_running=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting),
            kv_usage=pool.num_used_blocks / max(pool.max_blocks, 1),
            prompt_tokens=times.prompt_tokens,
            cached_prompt_tokens=times.cached_tokens,
            num_deferred=self._num_deferred,
            generation_tokens=len(times.first) + len(times.later),
            prefix_queries=self._prefix_queries,
            prefix_hits=self._prefix_hits,
            preemptions=self._preemptions,
            first_token_seconds=tuple(times.first),
            inter_token_seconds=tuple(times.later),
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
