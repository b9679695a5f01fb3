"""The device-loop side of a language model: steps, and what each step's tokens mean for its requests."""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch

from onecard.engines.api import (
    EngineFailedError,
    FinishReason,
    ModelUnavailableError,
    StatsSink,
    TokenChunk,
    TokenLogprob,
)
from onecard.engines.paged.output import token_logprobs
from onecard.engines.paged.request import Request, Sequence, Status
from onecard.engines.paged.rows import RequestRows
from onecard.engines.paged.runner import ModelRunner, PromptLogprobs, StepOutput
from onecard.engines.paged.scheduler import Schedule, Scheduler
from onecard.engines.paged.statistics import Statistics, token_times
from onecard.engines.runtime.cost_model import StepShape
from onecard.engines.runtime.failures import classify
from onecard.engines.runtime.inbox import Delivery
from onecard.engines.runtime.step_budget import StepBudget
from onecard.engines.runtime.step_clock import StepClock
from onecard.engines.runtime.step_limit import StepLimit
from onecard.engines.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Step:
    """A launched step; `launch_seconds` is what that took of the host."""

    schedule: Schedule
    output: StepOutput
    launch_seconds: float


class PagedCore:
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
        deliver: Callable[[list[Delivery]], None],
    ):
        """`deliver` hands clients what doesn't come of a step."""
        self.name = name
        self.weight = weight
        self.priority = priority
        self.scheduler = scheduler
        self.num_finished = 0
        self.warming = False
        """A warm-up drives the steps, between others' on the loop: the loop itself leaves them alone."""
        self._deliver = deliver
        self._runner = runner
        self._rows = rows
        self._budget = StepBudget()
        self._limit = StepLimit(name)
        self._tokenizer = tokenizer
        self._stats = Statistics(name, scheduler, clock.asynchronous, stats)
        self._in_flight: deque[Step] = deque()
        self._retrying = False
        """The last step that was tried had no memory, and was undone."""
        self._suspect: list[Schedule] = []
        """The step being launched or collected, and in the latter case those launched on top of it: what
        `fail` is about."""
        self._owed: list[Delivery] = []
        """What `fail` has to deliver while it is at it: `give_up` does, should it come to nothing."""

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
        self._stats.recalled()
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
        return self.scheduler.waiting_blocks

    # --- runtime.StepEngine -------------------------------------------------------------------------------

    def has_work(self) -> bool:
        return not self.warming and self.scheduler.has_work()

    def urgency(self) -> int:
        scheduler = self.scheduler
        most_urgent = min(
            s.request.priority for line in (scheduler.running, scheduler.waiting) for s in line[:1]
        )
        return self.priority + most_urgent

    def _max_tokens(self, seconds: float | None) -> int | None:
        """Of the next step: what fits the time and, after a shortage of memory, that."""
        limits = (self._limit.tokens, self._tokens_within(seconds))
        return min((limit for limit in limits if limit is not None), default=None)

    def _tokens_within(self, seconds: float | None) -> int | None:
        """Tokens of a step of so many seconds: the decodes, which go on in any case, and what prompts may
        have beside them; at least a block's worth, so that prompts get on."""
        if seconds is None:
            return None
        decodes = [s for s in self.scheduler.running if s.num_uncomputed_tokens == 1 and s.may_step]
        beside = StepShape(len(decodes), len(decodes), sum(s.num_tokens for s in decodes))
        prompts = self._budget.tokens(seconds, beside, self.scheduler.kv.block_size)
        return None if prompts is None else len(decodes) + prompts

    def launch(self, seconds: float | None = None) -> Step | None:
        """A step that finds no memory is undone, and the next call tries a smaller one."""
        if self._retrying and self._in_flight:
            return None  # the undone step may have left its own tokens in the card's rows: read first
        began = time.perf_counter()
        schedule = self.scheduler.schedule(time.monotonic(), self._max_tokens(seconds))
        self._stats.scheduled(schedule)
        if schedule.too_large:
            self._deliver([d for sequence in schedule.too_large for d in self._refuse(sequence, schedule)])
        for sequence in schedule.preempted:
            self._rows.leave(sequence)
        if not schedule.items:
            return None
        self._suspect = [schedule]
        try:
            output = self._launch(schedule)
        except Exception as error:
            if classify(error) != "memory" or (self._retrying and schedule.num_tokens == 1):
                raise
            self._undo(schedule)
        else:
            self._suspect, self._retrying = [], False
            self._in_flight.append(Step(schedule, output, time.perf_counter() - began))
            return self._in_flight[-1]
        # Not before the error is gone, and with it what its frames hold.
        torch.cuda.empty_cache()
        return None

    def _launch(self, schedule: Schedule) -> StepOutput:
        for item in schedule.items:
            if item.sequence.row < 0:
                self._rows.enter(item.sequence)
        return self._runner.launch(schedule)

    def _refuse(self, sequence: Sequence, schedule: Schedule) -> list[Delivery]:
        """The awake models' weights, or a lowered ceiling, leave too little for a request this long: none of
        its answers goes on, also those that `schedule` has chosen."""
        request = sequence.request
        schedule.items = [item for item in schedule.items if item.sequence.request is not request]
        schedule.num_decodes = sum(item.num_tokens == 1 for item in schedule.items)
        gone = [s for s in request.sequences if s is sequence or s.status is not Status.FINISHED]
        error = self._refusal(sequence)
        return [*(self._finish(s, "error") for s in gone), partial(request.stream.fail, error)]

    def _refusal(self, sequence: Sequence) -> ModelUnavailableError:
        kv, needed = self.scheduler.kv, self.scheduler.blocks_to_end(sequence)
        most, advice = kv.pool.most_blocks_ever, "shorten it, or ask for a shorter answer"
        if needed <= most:
            needed, most = kv.blocks_for(sequence.num_tokens), kv.pool.max_blocks
            advice = "shorten it, or try again when other models sleep"
        return ModelUnavailableError(
            f"The request needs {needed} blocks of {self.name}'s cache, which may have {most} of "
            f"{kv.block_size} tokens now: {advice}."
        )

    def _undo(self, schedule: Schedule) -> None:
        self.scheduler.undo(schedule)
        self._limit.shrink(schedule.num_tokens)
        self._suspect, self._retrying = [], True

    def collect(self, step: Step) -> list[Delivery]:
        began = time.perf_counter()
        self._in_flight.popleft()
        self._suspect = [step.schedule, *(later.schedule for later in self._in_flight)]
        output = step.output
        output.mark.wait()
        waited = time.perf_counter() - began
        token_ids = [] if output.token_ids is None else output.token_ids.tolist()
        now = time.monotonic()
        for prompt in output.prompt_logprobs:
            self._add_prompt_logprobs(prompt)
        logprobs = self._logprobs(output, token_ids)
        times = token_times([item.sequence for item in output.sampled], now)
        deliveries: list[Delivery] = []
        for i, (item, token_id) in enumerate(zip(output.sampled, token_ids, strict=True)):
            deliveries += self._append_token(item.sequence, token_id, logprobs.get(i))
        for item in step.schedule.items:
            if item.sequence.status is Status.RUNNING:
                self.scheduler.kv.cache_computed(item.sequence)
        self._budget.observe(step.schedule.shape, output.mark.device_seconds)
        self._limit.grow(step.schedule.num_tokens, self.scheduler.limits.max_num_batched_tokens)
        host = step.launch_seconds + time.perf_counter() - began - waited
        deliveries.append(self._stats.step(output.mark, host, times))
        self._suspect = []
        return deliveries

    def fail(self, error: BaseException) -> list[Delivery]:
        """Fail the requests of the step that raised (all of them, if it broke before there was a step).

        What it was to write into the cache can't be trusted: every cached prefix is forgotten, and steps
        that were launched on top of it fail as well.
        """
        suspect, self._suspect, self._retrying = self._suspect, [], False
        broken = [item.sequence for schedule in suspect for item in schedule.items]
        lost = _requests_of(broken if suspect else [*self.scheduler.running, *self.scheduler.waiting])
        failure = EngineFailedError(
            f"The engine of {self.name} failed while running this request; try it again."
        )
        self._owed = [partial(request.stream.fail, failure) for request in lost]
        for request in lost:
            self._owed += [
                self._finish(s, "error") for s in request.sequences if s.status is not Status.FINISHED
            ]
        self.scheduler.kv.pool.reset_prefix_cache()
        self.scheduler.kv.pool.check_integrity()
        owed, self._owed = self._owed, []
        return owed

    def give_up(self, error: BaseException) -> list[Delivery]:
        deliveries, self._owed, self._suspect, self._retrying = self._owed, [], [], False
        failure = EngineFailedError(f"The engine of {self.name} has failed and is out of service.")
        abandoned = self.scheduler.abandon()
        deliveries += [partial(request.stream.fail, failure) for request in _requests_of(abandoned)]
        for sequence in abandoned:
            self._rows.leave(sequence)
            deliveries.append(self._stats.request(sequence, "error"))
        self.num_finished += len(abandoned)
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
        self._rows.leave(sequence)
        self.scheduler.finish(sequence)
        self.num_finished += 1
        return self._stats.request(sequence, reason)

    def _add_prompt_logprobs(self, prompt: PromptLogprobs) -> None:
        request = prompt.sequence.request
        if prompt.sequence.index:
            return
        token_ids = request.prompt_token_ids[prompt.first : prompt.first + len(prompt.logprobs.chosen)]
        entries = token_logprobs(
            self._tokenizer, token_ids, prompt.logprobs, request.sampling.prompt_logprobs or 0
        )
        known = request.stream.prompt_logprobs or [None]
        # After a preemption the prompt is computed again, from its first token on.
        request.stream.prompt_logprobs = [*known[: prompt.first], *entries]

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


def _requests_of(sequences: Iterable[Sequence]) -> list[Request]:
    return list({id(sequence.request): sequence.request for sequence in sequences}.values())


def _cut_top(entry: TokenLogprob, sequence: Sequence) -> TokenLogprob:
    """Only as many alternatives as this request asked for."""
    wanted = sequence.request.sampling.logprobs or 0
    return TokenLogprob(entry.token_id, entry.token, entry.logprob, entry.token_bytes, entry.top[:wanted])
