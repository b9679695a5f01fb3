"""The device-loop side of a one-shot model: take texts, pack, one forward pass, a head, one copy back."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import cast

import torch
from torch import nn

from onecard.engines.api import EngineFailedError, FinishReason, RequestStats, StatsSink, StepStats
from onecard.engines.oneshot.job import Job
from onecard.engines.oneshot.packing import filler_texts, pack
from onecard.engines.oneshot.queue import Entry, TokenBudgetQueue
from onecard.engines.runtime.inbox import Delivery
from onecard.engines.runtime.staging import Staging, to_host
from onecard.engines.runtime.step_budget import StepShape
from onecard.engines.runtime.step_clock import StepClock, StepMark
from onecard.engines.step.core import StatsButTimes, StepCore, distinct

Head = Callable[[torch.Tensor, torch.Tensor, nn.Module], torch.Tensor]
"""Hidden states `[T, H]`, cu_seqlens `[B + 1]` and the model that they are of, to a row of numbers for each
text: `[B, D]` float32."""


@dataclass(frozen=True)
class Texts:
    """Of one step: as they were `taken` from the queue, and in the order in which they are packed.

    Neighbours of like length share cache lines and attention tiles; rows find their place by their entry.
    """

    taken: list[Entry]

    @cached_property
    def entries(self) -> list[Entry]:
        return sorted(self.taken, key=lambda entry: len(entry.token_ids), reverse=True)

    @cached_property
    def shape(self) -> StepShape:
        return StepShape.of_texts([len(entry.token_ids) for entry in self.entries])

    @property
    def jobs(self) -> list[Job]:
        return distinct(map(_job_of, self.entries))


@dataclass(frozen=True, slots=True)
class Rows:
    """`values` `[len(entries), D]` float32 on the host."""

    mark: StepMark
    values: torch.Tensor


class OneShotCore(StepCore[Texts, Rows]):
    """A request may have texts in several steps, and no step reads what another one has written."""

    builds_on_steps_in_flight = False

    def __init__(
        self,
        name: str,
        weight: float,
        priority: int,
        head: Head,
        queue: TokenBudgetQueue,
        longest: int,
        device: torch.device,
        clock: StepClock,
        stats: StatsSink,
        deliver: Callable[[list[Delivery]], None],
    ):
        """`longest`: tokens of the longest text, which isn't cut."""
        super().__init__(name, weight, priority, clock, stats, deliver)
        self.model: nn.Module | None = None
        """None while it sleeps with its weights dropped."""
        self._head = head
        self._queue = queue
        self._longest = longest
        self._device = device
        self._staging = Staging(device)
        self._jobs: set[Job] = set()

    # --- requests ---------------------------------------------------------------------------------------

    def add(self, request: Job) -> None:
        """One that was cancelled on its way waits for nothing; its abort follows."""
        self._jobs.add(request)
        self._queue.add(request, request.texts, request.type_ids)

    def abort(self, request: Job) -> list[Delivery]:
        """What has not run is dropped; what runs is thrown away when it is collected."""
        self._retrying = False  # it may have been a text of this one that found no memory
        self._queue.cancel(request)
        return self._end(request, "abort") if request in self._jobs else []

    def has_unfinished(self) -> bool:
        return bool(self._jobs)

    @property
    def num_running(self) -> int:
        """Requests with a text in flight."""
        return len({id(entry.queued) for step in list(self._in_flight) for entry in step.batch.entries})

    @property
    def num_waiting(self) -> int:
        """Texts that wait for a step."""
        return len(self._queue)

    # --- what a step computes ---------------------------------------------------------------------------

    def use(self, model: nn.Module | None) -> None:
        self.model = model

    def _has_work(self) -> bool:
        """Texts in flight only want to be collected."""
        return len(self._queue) > 0

    def urgency(self) -> int:
        return self.priority + self._queue.priority

    def _schedule(self, seconds: float | None) -> Texts | None:
        """One text is taken in any case."""
        taken = self._queue.take(self._limit.tokens, self._budget.texts(seconds))
        if not taken:
            return None
        texts = Texts(taken)
        self._tell_begun(texts.jobs)
        return texts

    def _tell_begun(self, jobs: Iterable[Job]) -> None:
        """Note whose first text is about to run, and tell whose last one is."""
        now = time.monotonic()
        begun: list[Delivery] = []
        for job in jobs:
            job.started = now if job.started is None else job.started
            if not job.waiting and job.on_begun is not None:
                begun.append(job.on_begun)
                job.on_begun = None
        if begun:
            self._deliver(begun)

    @torch.inference_mode()
    def _run(self, batch: Texts) -> Rows:
        texts = [entry.token_ids for entry in batch.entries]
        filler = filler_texts(batch.shape.tokens, self._longest) if self._device.type == "cpu" else []
        packed = pack([*texts, *filler], self._staging, [entry.type_ids for entry in batch.entries])
        mark = self._clock.begin()
        assert self.model is not None, "the model is asleep"
        hidden = self.model(packed)[: batch.shape.tokens]
        values = to_host(self._head(hidden, packed.cu_seqlens[: len(texts) + 1], self.model))
        mark.end()
        return Rows(mark, values)

    def _is_smallest(self, batch: Texts) -> bool:
        return len(batch.taken) == 1

    def _undo(self, batch: Texts) -> None:
        self._queue.put_back(batch.taken)

    @property
    def max_step_tokens(self) -> int:
        return self._queue.max_tokens

    @property
    def min_step_tokens(self) -> int:
        return self._longest

    def limit_steps(self, max_tokens: int, max_seqs: int | None = None) -> None:
        self._queue.max_tokens = max_tokens
        self._queue.max_seqs = max_seqs or self._queue.max_seqs

    # --- what has been computed -------------------------------------------------------------------------

    def _read(self, batch: Texts, output: Rows) -> tuple[list[Delivery], StatsButTimes]:
        """Put the rows where they belong, and hand over the requests that are whole."""
        deliveries: list[Delivery] = []
        for entry, row in zip(batch.entries, output.values.numpy(), strict=True):
            job = _job_of(entry)
            job.results[entry.index] = row
            job.num_missing -= 1
            if job.num_missing == 0 and not job.cancelled:
                deliveries += [job.deliver, *self._end(job, "stop")]
        running, waiting = len(batch.jobs), len(self._queue)
        stats = partial(
            StepStats, self.name, running, waiting, kv_usage=None, prompt_tokens=batch.shape.tokens
        )
        return deliveries, stats

    def _lose(self, suspect: list[Texts], error: BaseException) -> list[Delivery]:
        """Also their texts that still wait; the others go on."""
        lost = [job for texts in suspect for job in texts.jobs if job in self._jobs]
        message = f"The step that computed this request failed: {type(error).__name__}: {error}"
        return self._fail(lost, EngineFailedError(message))

    def _lose_all(self, error: BaseException) -> list[Delivery]:
        return self._fail(
            list(self._jobs), EngineFailedError(f"{self.name} has failed and is out of service.")
        )

    def _fail(self, jobs: list[Job], error: EngineFailedError) -> list[Delivery]:
        deliveries: list[Delivery] = []
        for job in jobs:
            self._queue.cancel(job)
            deliveries += [partial(job.deliver_error, error), *self._end(job, "error")]
        return deliveries

    def _end(self, job: Job, reason: FinishReason) -> list[Delivery]:
        self._jobs.discard(job)
        now, started = time.monotonic(), job.started
        stats = RequestStats(
            model=self.name,
            finish_reason=reason,
            prompt_tokens=job.num_tokens,
            generation_tokens=0,
            cached_tokens=0,
            preemptions=0,
            n=1,
            max_tokens=None,
            e2e_seconds=now - job.arrived,
            queue_seconds=None if started is None else started - job.arrived,
            prefill_seconds=None if started is None else now - started,
        )
        return [self._finished(stats)]

    def idle(self) -> None:
        """Raises `RuntimeError` where a request got lost: nothing waits or runs, yet one is unfinished."""
        if self._jobs and not self._in_flight and not self._queue:
            raise RuntimeError(f"{self.name}: {len(self._jobs)} requests are neither queued nor running")


def _job_of(entry: Entry) -> Job:
    return cast(Job, entry.queued)
