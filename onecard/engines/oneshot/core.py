"""The device thread's side of an embedding model: queue, pack, forward, pool, one copy back."""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch

from onecard.engines.api import EngineFailedError, StatsSink, StepStats
from onecard.engines.layers.forward_batch import EncodeBatch
from onecard.engines.oneshot.job import EmbedJob
from onecard.engines.oneshot.packing import filler_texts, pack
from onecard.engines.oneshot.queue import Entry, TokenBudgetQueue
from onecard.engines.runtime.cost_model import StepShape
from onecard.engines.runtime.failures import classify
from onecard.engines.runtime.inbox import Delivery
from onecard.engines.runtime.staging import Staging
from onecard.engines.runtime.step_budget import StepBudget
from onecard.engines.runtime.step_clock import StepClock, StepMark
from onecard.engines.runtime.step_limit import StepLimit

EncoderModel = Callable[[EncodeBatch], torch.Tensor]
"""`[T]` packed tokens to hidden states `[T, D]`."""

VectorPooling = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Hidden states `[T, D]` and cu_seqlens `[B + 1]` to vectors `[B, D]` float32."""


@dataclass(slots=True)
class _Step:
    """`vectors` `[len(entries), D]` float32 on the host, to be read once `mark` has been waited for."""

    entries: list[Entry]
    shape: StepShape
    host_seconds: float = 0.0
    vectors: torch.Tensor | None = None
    mark: StepMark | None = None

    @property
    def num_tokens(self) -> int:
        return self.shape.tokens


class OneShotCore:
    """A `runtime.StepEngine`; `add` and `cancel` too run on the device loop's thread.

    Steps are collected in the order in which they were launched; others may be launched meanwhile. A request
    may have texts in several of them.
    """

    def __init__(
        self,
        name: str,
        model: EncoderModel | None,
        pooling: VectorPooling,
        queue: TokenBudgetQueue,
        device: torch.device,
        clock: StepClock,
        stats: StatsSink,
        deliver: Callable[[list[Delivery]], None],
        weight: float = 1.0,
        priority: int = 0,
    ):
        """`deliver` hands clients what doesn't come of a collected step."""
        self.name = name
        self.weight = weight
        self.priority = priority
        self.warming = False
        """A warm-up drives the steps, between others' on the loop: the loop itself leaves them alone."""
        self._budget = StepBudget()
        self._limit = StepLimit(name)
        self.model = model
        """None while it sleeps with its weights dropped."""
        self._pooling = pooling
        self._queue = queue
        self._device = device
        self._staging = Staging(device)
        self._clock = clock
        self._stats = stats
        self._deliver = deliver
        self._jobs: set[EmbedJob] = set()
        self._in_flight: deque[_Step] = deque()
        self._stepping: _Step | None = None
        """The step being launched or collected: the one that `fail` is about."""
        self._retrying = False
        """The last step that was tried had no memory, and its texts went back in line."""

    # --- requests ---------------------------------------------------------------------------------------

    def add(self, job: EmbedJob) -> None:
        if not job.cancelled:
            self._jobs.add(job)
            self._queue.add(job, job.texts)

    def cancel(self, job: EmbedJob) -> None:
        """What has not run is dropped; what runs is thrown away when it is collected. Idempotent."""
        self._queue.cancel(job)
        self._jobs.discard(job)
        self._retrying = False  # it may have been a text of this one that found no memory

    def limit_steps(self, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        """A step takes no more texts and tokens than this from now on."""
        self._queue.max_seqs, self._queue.max_tokens = max_num_seqs, max_num_batched_tokens

    @property
    def has_requests(self) -> bool:
        """Whether any is unfinished. Any thread may ask."""
        return bool(self._jobs)

    @property
    def num_running(self) -> int:
        """Requests with a text in flight."""
        return len({id(entry.queued) for step in list(self._in_flight) for entry in step.entries})

    @property
    def num_waiting(self) -> int:
        """Texts that wait for a step."""
        return len(self._queue)

    # --- steps ------------------------------------------------------------------------------------------

    def has_work(self) -> bool:
        """Texts wait for a step. Those in flight only want to be collected."""
        return not self.warming and len(self._queue) > 0

    def urgency(self) -> int:
        """The priority of the most urgent request that waits."""
        return self.priority + self._queue.priority

    def launch(self, seconds: float | None = None) -> object | None:
        """Take what fits the budget and enqueue its forward pass, pooling and copy back.

        `seconds` lowers the queue's own budget to what such a step can compute; one text is taken in any
        case. A step that finds no memory is undone, and the next call tries a smaller one.
        """
        began = time.perf_counter()
        taken = self._queue.take(self._limit.tokens, self._budget.texts(seconds))
        if not taken:
            return None
        # Neighbours of like length share cache lines and attention tiles; rows find their place by their
        # entry.
        entries = sorted(taken, key=lambda entry: len(entry.token_ids), reverse=True)
        step = _Step(entries, StepShape.of_texts([len(entry.token_ids) for entry in entries]))
        self._stepping = step
        self._begin(map(_job_of, entries))
        try:
            self._enqueue(step)
        except Exception as error:
            if classify(error) != "memory" or (self._retrying and len(taken) == 1):
                raise
            self._undo(taken, step)
        else:
            self._in_flight.append(step)
            self._stepping, self._retrying = None, False
            step.host_seconds = time.perf_counter() - began
            return step
        # Not before the error is gone, and with it what its frames hold.
        torch.cuda.empty_cache()
        return None

    def _begin(self, jobs: Iterable[EmbedJob]) -> None:
        """Note, and tell, whose first text is about to run."""
        now = time.monotonic()
        begun: list[Delivery] = []
        for job in jobs:
            if job.started is None:
                job.started = now
                if job.on_begun is not None:
                    begun.append(job.on_begun)
        if begun:
            self._deliver(begun)

    def _undo(self, taken: list[Entry], step: _Step) -> None:
        self._queue.put_back(taken)
        self._limit.shrink(step.num_tokens)
        self._stepping, self._retrying = None, True

    @torch.inference_mode()
    def _enqueue(self, step: _Step) -> None:
        texts = [entry.token_ids for entry in step.entries]
        filler = filler_texts(step.num_tokens) if self._device.type == "cpu" else []
        batch = pack([*texts, *filler], self._staging)
        step.mark = self._clock.begin()
        assert self.model is not None
        hidden = self.model(batch)[: step.num_tokens]
        step.vectors = _to_host(self._pooling(hidden, batch.cu_seqlens[: len(texts) + 1]))
        step.mark.end()

    def collect(self, step: object) -> list[Delivery]:
        """Wait for `step`, put its vectors where they belong, and hand over the requests that are whole."""
        assert isinstance(step, _Step)
        assert step is self._in_flight[0], "steps are collected in order"
        assert step.mark is not None
        self._stepping = self._in_flight.popleft()
        step.mark.wait()
        computed = time.perf_counter()
        finished = self._scatter(step)
        step.host_seconds += time.perf_counter() - computed
        self._budget.observe(step.shape, step.mark.device_seconds)
        self._limit.grow(step.num_tokens, self._queue.max_tokens)
        stats = self._step_stats(step, step.mark)
        self._jobs.difference_update(finished)
        self._stepping = None
        return [*(job.deliver for job in finished), partial(self._stats.record_step, stats)]

    def _scatter(self, step: _Step) -> list[EmbedJob]:
        assert step.vectors is not None
        finished = []
        for entry, vector in zip(step.entries, step.vectors.numpy(), strict=True):
            job = _job_of(entry)
            job.vectors[entry.index] = vector
            job.num_missing -= 1
            if job.num_missing == 0 and not job.cancelled:
                finished.append(job)
        return finished

    def _step_stats(self, step: _Step, mark: StepMark) -> StepStats:
        """On a CPU a step is computed while it is launched: that is no host time."""
        computed_meanwhile = 0.0 if self._clock.asynchronous else mark.device_seconds
        return StepStats(
            model=self.name,
            num_running=len({id(entry.queued) for entry in step.entries}),
            num_waiting=len(self._queue),
            kv_usage=0.0,
            prompt_tokens=step.num_tokens,
            host_seconds=step.host_seconds - computed_meanwhile,
            device_seconds=mark.device_seconds,
            gap_seconds=mark.gap_seconds,
        )

    def fail(self, error: BaseException) -> list[Delivery]:
        """Fail the requests of the step that raised, also their texts that still wait; the others go on."""
        step, self._stepping = self._stepping, None
        entries = step.entries if step is not None else []
        lost = {job for job in map(_job_of, entries) if job in self._jobs}
        message = f"The step that computed this request failed: {type(error).__name__}: {error}"
        return self._lose(lost, EngineFailedError(message))

    def give_up(self, error: BaseException) -> list[Delivery]:
        self._stepping = None
        return self._lose(self._jobs, EngineFailedError(f"{self.name} has failed and is out of service."))

    def _lose(self, jobs: set[EmbedJob], error: EngineFailedError) -> list[Delivery]:
        deliveries: list[Delivery] = [partial(job.deliver_error, error) for job in jobs]
        for job in list(jobs):
            self.cancel(job)
        return deliveries

    def idle(self) -> None:
        """Raises `RuntimeError` where a request got lost: nothing waits or runs, yet one is unfinished."""
        if self._jobs and not self._in_flight and not self._queue:
            raise RuntimeError(f"{self.name}: {len(self._jobs)} requests are neither queued nor running")


def _to_host(vectors: torch.Tensor) -> torch.Tensor:
    """A copy that is whole when the step is; on a CPU the vectors themselves."""
    if vectors.is_cpu:
        return vectors
    host = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
    return host.copy_(vectors, non_blocking=True)


def _job_of(entry: Entry) -> EmbedJob:
    assert isinstance(entry.queued, EmbedJob)
    return entry.queued
