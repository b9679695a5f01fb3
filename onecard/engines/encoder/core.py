"""The device thread's side of an embedding model: queue, pack, forward, pool, one copy back."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from onecard.engines.api import EngineFailedError, StatsSink, StepStats
from onecard.engines.encoder.job import EmbedJob
from onecard.engines.encoder.packing import filler_texts, pack
from onecard.engines.encoder.pooling import Pooling
from onecard.engines.encoder.queue import Entry, TokenBudgetQueue
from onecard.engines.layers.forward_batch import EncodeBatch
from onecard.engines.runtime.inbox import Delivery

EncoderModel = Callable[[EncodeBatch], torch.Tensor]
"""`[T]` packed tokens to hidden states `[T, D]`."""


@dataclass(slots=True)
class _Step:
    entries: list[Entry]
    num_tokens: int
    launched: float
    gap_seconds: float = 0.0
    host_seconds: float = 0.0
    vectors: torch.Tensor | None = None
    begin: torch.cuda.Event | None = None
    end: torch.cuda.Event | None = None


class EncoderCore:
    """A `runtime.StepEngine`; `add` and `cancel` too run on the device loop's thread.

    Steps are collected in the order in which they were launched, at any distance.
    """

    def __init__(
        self,
        name: str,
        model: EncoderModel,
        pooling: Pooling,
        queue: TokenBudgetQueue,
        device: torch.device,
        stats: StatsSink,
        weight: float = 1.0,
    ):
        self.name = name
        self.weight = weight
        self._model = model
        self._pooling = pooling
        self._queue = queue
        self._device = device
        self._stats = stats
        self._jobs: set[EmbedJob] = set()
        self._in_flight: deque[_Step] = deque()
        self._stepping: _Step | None = None
        """The step being launched or collected: the one that `fail` is about."""
        self._busy_until: float | None = None

    # --- requests ---------------------------------------------------------------------------------------

    def add(self, job: EmbedJob) -> None:
        if not job.cancelled:
            self._jobs.add(job)
            self._queue.add(job, job.texts)

    def cancel(self, job: EmbedJob) -> None:
        """What has not run is dropped; what runs is thrown away when it is collected. Idempotent."""
        self._queue.cancel(job)
        self._jobs.discard(job)

    @property
    def num_running(self) -> int:
        """Requests with a text in flight."""
        return len({id(entry.ticket) for step in list(self._in_flight) for entry in step.entries})

    @property
    def num_waiting(self) -> int:
        """Texts that wait for a step."""
        return len(self._queue)

    # --- steps ------------------------------------------------------------------------------------------

    def has_work(self) -> bool:
        return len(self._queue) > 0

    def launch(self, max_tokens: int | None = None) -> object | None:
        """Take what fits the budget and enqueue its forward pass, pooling and copy back.

        `max_tokens` lowers the queue's own budget for this step; one text is taken in any case.
        """
        launched = time.monotonic()
        entries = self._queue.take(max_tokens)
        if not entries:
            return None
        # Neighbours of like length share cache lines and attention tiles; rows find their place by their
        # entry.
        entries.sort(key=lambda entry: len(entry.token_ids), reverse=True)
        step = _Step(entries, sum(len(entry.token_ids) for entry in entries), launched)
        self._stepping = step
        if self._busy_until is not None:
            step.gap_seconds = launched - self._busy_until
        for entry in entries:
            job = _job_of(entry)
            if job.started is None:
                job.started = launched
        self._enqueue(step)
        self._in_flight.append(step)
        self._stepping = None
        return step

    def _enqueue(self, step: _Step) -> None:
        texts = [entry.token_ids for entry in step.entries]
        filler = filler_texts(step.num_tokens) if self._device.type == "cpu" else []
        batch = pack([*texts, *filler], self._device)
        if self._device.type == "cuda":
            step.begin, step.end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            step.begin.record()
        step.host_seconds = time.monotonic() - step.launched
        with torch.inference_mode():
            hidden = self._model(batch)[: step.num_tokens]
            vectors = self._pooling(hidden, batch.cu_seqlens[: len(texts) + 1])
            if step.end is None:
                step.vectors = vectors
                return
            step.vectors = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
            step.vectors.copy_(vectors, non_blocking=True)
            step.end.record()
        step.host_seconds = time.monotonic() - step.launched

    def collect(self, step: object) -> list[Delivery]:
        """Wait for `step`, put its vectors where they belong, and hand over the requests that are whole."""
        assert isinstance(step, _Step)
        assert step is self._in_flight[0], "steps are collected in order"
        assert step.vectors is not None
        self._stepping = self._in_flight.popleft()
        if step.end is not None:
            step.end.synchronize()
        computed = time.monotonic()
        finished = self._scatter(step)
        self._jobs.difference_update(finished)
        self._stepping = None
        stats = self._step_stats(step, computed)
        self._busy_until = time.monotonic() if self.has_work() else None
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

    def _step_stats(self, step: _Step, computed: float) -> StepStats:
        elapsed = computed - step.launched
        if step.begin is not None and step.end is not None:
            device_seconds = step.begin.elapsed_time(step.end) / 1e3
        else:
            device_seconds = elapsed - step.host_seconds
        return StepStats(
            model=self.name,
            num_running=len({id(entry.ticket) for entry in step.entries}),
            num_waiting=len(self._queue),
            kv_usage=0.0,
            prompt_tokens=step.num_tokens,
            host_seconds=step.host_seconds + time.monotonic() - computed,
            device_seconds=device_seconds,
            gap_seconds=step.gap_seconds,
        )

    def fail(self, error: BaseException) -> list[Delivery]:
        """Fail the requests of the step that raised, also their texts that still wait; the others go on."""
        step, self._stepping = self._stepping, None
        entries = step.entries if step is not None else []
        lost = {job for job in map(_job_of, entries) if job in self._jobs}
        for job in lost:
            self.cancel(job)
        message = f"The step that computed this request failed: {type(error).__name__}: {error}"
        return [partial(job.deliver_error, EngineFailedError(message)) for job in lost]

    def idle(self) -> None:
        """Raises `RuntimeError` where a request got lost: nothing waits or runs, yet one is unfinished."""
        if self._jobs and not self._in_flight and not self.has_work():
            raise RuntimeError(f"{self.name}: {len(self._jobs)} requests are neither queued nor running")


def _job_of(entry: Entry) -> EmbedJob:
    assert isinstance(entry.ticket, EmbedJob)
    return entry.ticket
