"""The device-loop side of a language model: steps, and what each step's tokens mean for its requests."""

import logging
import time
from dataclasses import dataclass, field
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
from onecard.engines.runtime.cost_model import StepShape
from onecard.engines.runtime.inbox import Delivery
from onecard.engines.runtime.step_budget import StepBudget
from onecard.engines.runtime.step_clock import StepClock
from onecard.engines.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """A launched step; `launch_seconds` is what that took of the host."""

    schedule: Schedule
    output: StepOutput
    launch_seconds: float


class LLMCore:
    """Implements `runtime.StepEngine`; owns the scheduler and everything below it. One thread touches it.

    Steps are collected in the order in which they were launched, and the next one may be launched before.
    """

    def __init__(
        self,
        name: str,
        weight: float,
        priority: int,
        scheduler: Scheduler,
        runner: ModelRunner,
        rows: RequestRows,
        clock: StepClock,
        tokenizer: Tokenizer,
        stats: StatsSink,
    ):
        self.name = name
        self.weight = weight
        self.priority = priority
        self.scheduler = scheduler
        self.num_finished = 0
        self._runner = runner
        self._rows = rows
        self._clock = clock
        self._budget = StepBudget()
        self._tokenizer = tokenizer
        self._stats = stats
        self._stepping: Schedule | None = None
        """The step being launched or collected: the one that `fail` is about."""
        self._num_recalled = 0
        """Preemptions since the last step because another engine wanted its floor back."""

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

    def move_blocks(self, moves: dict[int, int]) -> None:
        """Blocks lie elsewhere from now on, old id -> new id: copy their K and V, rewrite the tables."""
        self._runner.move_blocks(moves)
        for sequence in self.scheduler.running:
            if not moves.keys().isdisjoint(sequence.block_table):
                sequence.block_table = [moves.get(block, block) for block in sequence.block_table]
                self._rows.rewrite_blocks(sequence)

    def waiting_blocks(self) -> int:
        """Blocks that the waiting sequences need to begin."""
        return sum(self.scheduler.kv.blocks_for(sequence.num_tokens) for sequence in self.scheduler.waiting)

    # --- runtime.StepEngine -------------------------------------------------------------------------------

    def has_work(self) -> bool:
        return self.scheduler.has_work()

    def urgency(self) -> int:
        scheduler = self.scheduler
        most_urgent = min(
            s.request.priority for line in (scheduler.running, scheduler.waiting) for s in line[:1]
        )
        return self.priority + most_urgent

    def _max_tokens(self, seconds: float | None) -> int | None:
        """Tokens of a step of so many seconds: the decodes, which go on in any case, and what prompts may
        have beside them; at least a block's worth, so that prompts get on."""
        if seconds is None:
            return None
        decodes = [s for s in self.scheduler.running if s.num_uncomputed_tokens == 1 and s.may_step]
        beside = StepShape(len(decodes), len(decodes), sum(s.num_tokens for s in decodes))
        prompts = self._budget.tokens(seconds, beside, self.scheduler.kv.block_size)
        return None if prompts is None else len(decodes) + prompts

    def launch(self, seconds: float | None = None) -> Step | None:
        began = time.perf_counter()
        schedule = self.scheduler.schedule(time.monotonic(), self._max_tokens(seconds))
        for sequence in schedule.preempted:
            self._rows.leave(sequence)
        if not schedule.items:
            return None
        self._stepping = schedule
        for item in schedule.items:
            if item.sequence.row < 0:
                self._rows.enter(item.sequence)
        output = self._runner.launch(schedule)
        self._stepping = None
        return Step(schedule, output, time.perf_counter() - began)

    def collect(self, step: Step) -> list[Delivery]:
        began = time.perf_counter()
        self._stepping = step.schedule
        output = step.output
        output.mark.wait()
        waited = time.perf_counter() - began
        token_ids = [] if output.token_ids is None else output.token_ids.tolist()
        now = time.monotonic()
        for prompt in output.prompt_logprobs:
            self._add_prompt_logprobs(prompt)
        logprobs = self._logprobs(output, token_ids)
        times = self._token_times([item.sequence for item in output.sampled], now)
        deliveries: list[Delivery] = []
        for i, (item, token_id) in enumerate(zip(output.sampled, token_ids, strict=True)):
            deliveries += self._append_token(item.sequence, token_id, logprobs.get(i))
        for item in step.schedule.items:
            if item.sequence.status is Status.RUNNING:
                self.scheduler.kv.cache_computed(item.sequence)
        self._stepping = None
        self._budget.observe(step.schedule.shape, output.mark.device_seconds)
        host = step.launch_seconds + time.perf_counter() - began - waited
        stats = self._step_stats(step, host, times)
        deliveries.append(partial(self._stats.record_step, stats))
        return deliveries

    def fail(self, error: BaseException) -> list[Delivery]:
        """Fail the requests of the step that raised (all of them, if it broke before there was a step).

        What it was to write into the cache can't be trusted: every cached prefix is forgotten.
        """
        step, self._stepping = self._stepping, None
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
        self.scheduler.kv.pool.reset_prefix_cache()
        self.scheduler.kv.pool.check_integrity()
        return deliveries

    def idle(self) -> None:
        self.scheduler.kv.pool.release_idle_pages()
        self.scheduler.kv.pool.check_integrity()

    # --- what a token means -------------------------------------------------------------------------------

    def _append_token(
        self, sequence: Sequence, token_id: int, logprob: TokenLogprob | None
    ) -> list[Delivery]:
        """A token that was sampled for an answer that has ended meanwhile is dropped."""
        request = sequence.request
        sequence.num_in_flight -= 1
        if sequence.status is Status.FINISHED:
            return []
        if request.max_tokens == 0:
            chunk = TokenChunk(sequence.index, "", (), None, "length")
        else:
            sequence.append(token_id)
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
        if output.logprobs is None:
            return {}
        entries = token_logprobs(
            self._tokenizer,
            [token_ids[i] for i in output.logprob_rows],
            output.logprobs,
            output.logprobs.top_ids.shape[1],
        )
        return {
            i: _cut_top(e, output.sampled[i].sequence)
            for i, e in zip(output.logprob_rows, entries, strict=True)
        }

    # --- statistics ---------------------------------------------------------------------------------------

    def _token_times(self, sequences: list[Sequence], now: float) -> "_TokenTimes":
        times = _TokenTimes()
        for sequence in sequences:
            if sequence.status is Status.FINISHED:
                continue
            if sequence.last_token_time is None:
                sequence.first_token_time = now
                times.first.append(now - sequence.request.arrival_time)
                times.prompt_tokens += sequence.num_prompt_tokens
            else:
                times.later.append(now - sequence.last_token_time)
            sequence.last_token_time = now
        return times

    def _step_stats(self, step: Step, host: float, times: "_TokenTimes") -> StepStats:
        """`host`: seconds of launching and collecting, without waiting for the card. A CPU computes while it
        launches: that is taken out here."""
        pool, mark = self.scheduler.kv.pool, step.output.mark
        recalled, self._num_recalled = self._num_recalled, 0
        device = mark.device_seconds
        return StepStats(
            model=self.name,
            num_running=len(self.scheduler.running),
            num_waiting=len(self.scheduler.waiting),
            kv_usage=pool.num_used_blocks / max(pool.max_blocks, 1),
            prompt_tokens=times.prompt_tokens,
            generation_tokens=len(times.first) + len(times.later),
            prefix_queries=step.schedule.prefix_queries,
            prefix_hits=step.schedule.prefix_hits,
            preemptions=len(step.schedule.preempted) + recalled,
            host_seconds=host if self._clock.asynchronous else host - device,
            device_seconds=device,
            gap_seconds=mark.gap_seconds,
            first_token_seconds=tuple(times.first),
            inter_token_seconds=tuple(times.later),
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


@dataclass
class _TokenTimes:
    """Times to first token, and between tokens, of the sequences that got one in a step; and the prompt
    tokens of those that got their first."""

    first: list[float] = field(default_factory=list)
    later: list[float] = field(default_factory=list)
    prompt_tokens: int = 0


def _cut_top(entry: TokenLogprob, sequence: Sequence) -> TokenLogprob:
    """Only as many alternatives as this request asked for."""
    wanted = sequence.request.sampling.logprobs or 0
    return TokenLogprob(entry.token_id, entry.token, entry.logprob, entry.token_bytes, entry.top[:wanted])
