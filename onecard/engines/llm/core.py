"""The device-loop side of a language model: steps, and what each step's tokens mean for its requests."""

import logging
import time
from dataclasses import dataclass
from functools import partial

from onecard.engines.api import (
    EngineFailedError,
    FinishReason,
    RequestStats,
    StatsSink,
    StepStats,
    TokenChunk,
    TokenLogprob,
)
from onecard.engines.llm.output import token_logprobs
from onecard.engines.llm.request import Request, Sequence, Status
from onecard.engines.llm.rows import RequestRows
from onecard.engines.llm.runner import ModelRunner, PromptLogprobs, StepOutput
from onecard.engines.llm.scheduler import Schedule, Scheduler
from onecard.engines.runtime.inbox import Delivery
from onecard.engines.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """A launched step. Times are `time.perf_counter` seconds."""

    schedule: Schedule
    output: StepOutput
    launched: float
    device_started: float


class LLMCore:
    """Implements `runtime.StepEngine`; owns the scheduler and everything below it. One thread touches it."""

    def __init__(
        self,
        name: str,
        weight: float,
        scheduler: Scheduler,
        runner: ModelRunner,
        rows: RequestRows,
        tokenizer: Tokenizer,
        stats: StatsSink,
    ):
        self.name = name
        self.weight = weight
        self.scheduler = scheduler
        self.num_finished = 0
        self._runner = runner
        self._rows = rows
        self._tokenizer = tokenizer
        self._stats = stats
        self._running_step: Schedule | None = None
        self._num_recalled = 0
        """Preemptions since the last step because another engine wanted its floor back."""
        self._last_device_end: float | None = None

    # --- requests in and out ----------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        self.scheduler.add(request)

    def abort(self, request: Request) -> list[Delivery]:
        """The client has gone: free what its answers hold. Aborting a finished request does nothing."""
        return [self._finish(s, "abort") for s in request.sequences if s.status is not Status.FINISHED]

    def preempt_newest(self) -> bool:
        """Free the blocks of the newest running sequence for another engine; False if nothing runs."""
        if not self.scheduler.running:
            return False
        sequence = self.scheduler.running[-1]
        self.scheduler.preempt(sequence)
        self._rows.leave(sequence)
        self._num_recalled += 1
        return True

    def waiting_blocks(self) -> int:
        """Blocks that the waiting sequences need to begin."""
        return sum(self.scheduler.kv.blocks_for(sequence.num_tokens) for sequence in self.scheduler.waiting)

    # --- runtime.StepEngine -------------------------------------------------------------------------------

    def has_work(self) -> bool:
        return self.scheduler.has_work()

    def launch(self) -> Step | None:
        launched = time.perf_counter()
        schedule = self.scheduler.schedule(time.monotonic())
        for sequence in schedule.preempted:
            self._rows.leave(sequence)
        if not schedule.items:
            return None
        self._running_step = schedule
        for item in schedule.items:
            if item.sequence.row < 0:
                self._rows.enter(item.sequence)
        started = time.perf_counter()
        output = self._runner.run(schedule)
        return Step(schedule, output, launched, started)

    def collect(self, step: Step) -> list[Delivery]:
        token_ids = step.output.sampled.token_ids.tolist() if step.output.sampled else []
        device_ended = time.perf_counter()
        now = time.monotonic()
        for item in step.schedule.items:
            before = item.sequence.num_computed_tokens
            item.sequence.num_computed_tokens += item.num_tokens
            self.scheduler.kv.cache_computed(item.sequence, before)
        for prompt in step.output.prompt_logprobs:
            self._add_prompt_logprobs(prompt)
        prompt_tokens = sum(s.num_prompt_tokens for s in step.output.sequences if s.last_token_time is None)
        first, later = self._token_times(step.output.sequences, now)
        logprobs = self._logprobs(step.output, token_ids)
        deliveries: list[Delivery] = []
        for i, (sequence, token_id) in enumerate(zip(step.output.sequences, token_ids, strict=True)):
            deliveries += self._append_token(sequence, token_id, logprobs.get(i))
        self._running_step = None
        stats = self._step_stats(step, device_ended, prompt_tokens, len(token_ids), first, later)
        deliveries.append(partial(self._stats.record_step, stats))
        return deliveries

    def fail(self, error: BaseException) -> list[Delivery]:
        """Fail the requests of the step that raised (all of them, if it broke before there was a step)."""
        step, self._running_step = self._running_step, None
        broken = (
            [item.sequence for item in step.items]
            if step
            else [*self.scheduler.running, *self.scheduler.waiting]
        )
        failure = EngineFailedError(
            f"The engine of {self.name} failed while running this request; try it again."
        )
        deliveries: list[Delivery] = []
        for request in {id(s.request): s.request for s in broken}.values():
            deliveries += [
                self._finish(s, "error") for s in request.sequences if s.status is not Status.FINISHED
            ]
            deliveries.append(partial(request.stream.fail, failure))
        return deliveries

    def idle(self) -> None:
        self._last_device_end = None
        self.scheduler.kv.pool.release_idle_pages()
        self.scheduler.kv.pool.check_integrity()

    # --- what a token means -------------------------------------------------------------------------------

    def _append_token(
        self, sequence: Sequence, token_id: int, logprob: TokenLogprob | None
    ) -> list[Delivery]:
        request = sequence.request
        if request.max_tokens == 0:
            chunk = TokenChunk(sequence.index, "", (), None, "length")
        else:
            sequence.token_ids.append(token_id)
            if sequence.processor is not None:
                sequence.processor.append(token_id)
            chunk = sequence.output.append(token_id, logprob)
        if sequence.num_output_tokens <= 1:
            request.stream.cached_tokens = max(request.stream.cached_tokens, sequence.num_cached_tokens)
        deliveries: list[Delivery] = [partial(request.stream.push, chunk)]
        if chunk.finish_reason is not None:
            deliveries.append(self._finish(sequence, chunk.finish_reason))
        return deliveries

    def _finish(self, sequence: Sequence, reason: FinishReason) -> Delivery:
        self.scheduler.finish(sequence)
        self._rows.leave(sequence)
        self.num_finished += 1
        return partial(self._stats.record_request, self._request_stats(sequence, reason))

    def _add_prompt_logprobs(self, prompt: PromptLogprobs) -> None:
        request = prompt.sequence.request
        if prompt.sequence.index:
            return
        token_ids = request.prompt_token_ids[prompt.first : prompt.first + len(prompt.logprobs.chosen)]
        entries = token_logprobs(
            self._tokenizer, token_ids, prompt.logprobs, request.sampling.prompt_logprobs or 0
        )
        request.stream.prompt_logprobs = [*(request.stream.prompt_logprobs or [None]), *entries]

    def _logprobs(self, output: StepOutput, token_ids: list[int]) -> dict[int, TokenLogprob]:
        sampled = output.sampled
        if sampled is None or sampled.logprobs is None:
            return {}
        entries = token_logprobs(
            self._tokenizer,
            [token_ids[i] for i in sampled.logprob_rows],
            sampled.logprobs,
            sampled.logprobs.top_ids.shape[1],
        )
        return {
            i: _cut_top(e, output.sequences[i]) for i, e in zip(sampled.logprob_rows, entries, strict=True)
        }

    # --- statistics ---------------------------------------------------------------------------------------

    def _token_times(self, sequences: list[Sequence], now: float) -> tuple[list[float], list[float]]:
        """Times to first token, and between tokens, of the sequences that got one just now."""
        first: list[float] = []
        later: list[float] = []
        for sequence in sequences:
            if sequence.last_token_time is None:
                sequence.first_token_time = now
                first.append(now - sequence.request.arrival_time)
            else:
                later.append(now - sequence.last_token_time)
            sequence.last_token_time = now
        return first, later

    def _step_stats(
        self,
        step: Step,
        device_ended: float,
        prompt_tokens: int,
        num_sampled: int,
        first: list[float],
        later: list[float],
    ) -> StepStats:
        """`device_ended`: when the step's tokens had been read; a card computes on after its launch."""
        pool = self.scheduler.kv.pool
        recalled, self._num_recalled = self._num_recalled, 0
        gap = step.device_started - self._last_device_end if self._last_device_end is not None else 0.0
        self._last_device_end = device_ended if self.has_work() else None
        device = device_ended - step.device_started
        return StepStats(
            model=self.name,
            num_running=len(self.scheduler.running),
            num_waiting=len(self.scheduler.waiting),
            kv_usage=pool.num_used_blocks / max(pool.max_blocks, 1),
            prompt_tokens=prompt_tokens,
            generation_tokens=num_sampled,
            prefix_queries=step.schedule.prefix_queries,
            prefix_hits=step.schedule.prefix_hits,
            preemptions=len(step.schedule.preempted) + recalled,
            host_seconds=time.perf_counter() - step.launched - device,
            device_seconds=device,
            gap_seconds=gap,
            first_token_seconds=tuple(first),
            inter_token_seconds=tuple(later),
        )

    def _request_stats(self, sequence: Sequence, reason: FinishReason) -> RequestStats:
        request, now = sequence.request, time.monotonic()
        scheduled, first = sequence.first_scheduled_time, sequence.first_token_time
        return RequestStats(
            model=self.name,
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


def _cut_top(entry: TokenLogprob, sequence: Sequence) -> TokenLogprob:
    """Only as many alternatives as this request asked for."""
    wanted = sequence.request.sampling.logprobs or 0
    return TokenLogprob(entry.token_id, entry.token, entry.logprob, entry.token_bytes, entry.top[:wanted])
