"""The device-loop side of a paged autoregressive model: what its steps compute, and what each step's tokens
mean for its requests."""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import cast

from torch import nn

from onecard.engines.api import (
    EngineError,
    EngineFailedError,
    FinishReason,
    ModelUnavailableError,
    StatsSink,
    TokenChunk,
    TokenLogprob,
)
from onecard.engines.memory.block_pool import BlockPool, Requests
from onecard.engines.paged.decode_graphs import DecodeGraphs, PagedModel
from onecard.engines.paged.kv_cache_manager import KVCacheManager
from onecard.engines.paged.output import PromptEntries, token_logprobs
from onecard.engines.paged.request import Request, Sequence, Status
from onecard.engines.paged.runner import ModelRunner, PromptLogprobs, StepOutput
from onecard.engines.paged.schedule import Schedule
from onecard.engines.paged.scheduler import Scheduler, SchedulerLimits
from onecard.engines.paged.statistics import Statistics
from onecard.engines.runtime.inbox import Delivery
from onecard.engines.runtime.step_budget import StepShape
from onecard.engines.runtime.step_clock import StepClock
from onecard.engines.step.core import StatsButTimes, StepCore, distinct
from onecard.engines.step.sizes import StepSize
from onecard.engines.text.tokenizer import Tokenizer
from onecard.registry.spec import ModelSpec
from onecard.registry.units import counted


class PagedCore(StepCore[Schedule, StepOutput]):
    """Owns the scheduler and everything below it; answers to the pool for its requests
    (`block_pool.Requests`)."""

    builds_on_steps_in_flight = True

    def __init__(
        self,
        name: str,
        weight: float,
        priority: int,
        make_blocks: Callable[[Requests], BlockPool],
        limits: SchedulerLimits,
        runner: ModelRunner,
        clock: StepClock,
        tokenizer: Tokenizer,
        stats: StatsSink,
        deliver: Callable[[list[Delivery]], None],
    ):
        """`limits` leave `resume_headroom` to the blocks: it is a page."""
        super().__init__(name, weight, priority, clock, stats, deliver)
        self._blocks = make_blocks(self)
        kv = KVCacheManager(self._blocks, runner.block_size, name)
        self.scheduler = Scheduler(kv, replace(limits, resume_headroom=self._blocks.blocks_per_page))
        self._runner = runner
        self._rows = runner.rows
        self._tokenizer = tokenizer
        self._counts = Statistics(name, self.scheduler)
        self._owed: list[Delivery] = []
        """What `fail` has to deliver while it is at it: `give_up` does, should it come to nothing."""

    # --- requests in and out ----------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        self.scheduler.add(request)

    def abort(self, request: Request) -> list[Delivery]:
        """The client has gone: free what its answers hold. Aborting a finished request does nothing."""
        return [self._finish(s, "abort") for s in request.sequences if s.status is not Status.FINISHED]

    def pause(self, request: Request) -> None:
        """The client doesn't read: nothing more is computed for it before `resume`."""
        self.scheduler.pause(request)
        for sequence in request.sequences:
            self._rows.leave(sequence)

    def resume(self, request: Request) -> None:
        self.scheduler.resume(request)

    def has_unfinished(self) -> bool:
        return self.scheduler.has_work() or bool(self.scheduler.paused)

    @property
    def num_running(self) -> int:
        return len(self.scheduler.running)

    @property
    def num_waiting(self) -> int:
        return len(self.scheduler.waiting)

    # --- block_pool.Requests --------------------------------------------------------------------------------

    def preempt_newest(self) -> bool:
        """Free the blocks of the newest running sequence for another engine; False if nothing runs."""
        if not self.scheduler.running:
            return False
        sequence = self.scheduler.running[-1]
        self.scheduler.preempt(sequence)
        self._rows.leave(sequence)
        self._counts.recalled()
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
        return self.scheduler.waiting.blocks

    # --- what a step computes -------------------------------------------------------------------------------

    def use(self, model: nn.Module | None) -> None:
        self._runner.use(cast(PagedModel | None, model))

    def close(self) -> None:
        super().close()
        self._runner.graphs = None

    @property
    def graphs(self) -> DecodeGraphs | None:
        return self._runner.graphs

    @property
    def blocks(self) -> BlockPool:
        return self._blocks

    def _has_work(self) -> bool:
        return self.scheduler.has_work()

    def urgency(self) -> int:
        scheduler = self.scheduler
        first = [line[0].request.priority for line in (scheduler.running, scheduler.waiting) if line]
        return self.priority + min(first)

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

    def _schedule(self, seconds: float | None) -> Schedule | None:
        schedule = self.scheduler.schedule(time.monotonic(), self._max_tokens(seconds))
        self._counts.scheduled(schedule)
        if schedule.too_large:
            self._deliver([d for sequence in schedule.too_large for d in self._refuse(sequence, schedule)])
        for sequence in schedule.preempted:
            self._rows.leave(sequence)
        return schedule if schedule.items else None

    def _run(self, batch: Schedule) -> StepOutput:
        for item in batch.items:
            if item.sequence.row < 0:
                self._rows.enter(item.sequence)
        return self._runner.launch(batch)

    def _is_smallest(self, batch: Schedule) -> bool:
        return batch.num_tokens == 1

    def _undo(self, batch: Schedule) -> None:
        self.scheduler.undo(batch)

    def _refuse(self, sequence: Sequence, schedule: Schedule) -> list[Delivery]:
        """The awake models' weights, or a lowered ceiling, leave too little for a request this long: none of
        its answers goes on, also those that `schedule` has chosen."""
        request = sequence.request
        schedule.items = [item for item in schedule.items if item.sequence.request is not request]
        schedule.num_decodes = sum(item.num_tokens == 1 for item in schedule.items)
        return self._fail_request(request, self._refusal(sequence), sequence)

    def _fail_request(
        self, request: Request, error: EngineError, also: Sequence | None = None
    ) -> list[Delivery]:
        gone = [s for s in request.sequences if s is also or s.status is not Status.FINISHED]
        return [*(self._finish(s, "error") for s in gone), partial(request.stream.fail, error)]

    def _refusal(self, sequence: Sequence) -> ModelUnavailableError:
        kv, needed = self.scheduler.kv, self.scheduler.blocks_to_end(sequence)
        most, advice = kv.pool.most_blocks_ever, "shorten it, or ask for a shorter answer"
        if needed <= most:
            needed, most = kv.blocks_for(sequence.num_tokens), kv.pool.max_blocks
            advice = "shorten it, or try again when other models sleep"
        return ModelUnavailableError(
            f"The request needs {counted(needed, 'block')} of {self.name}'s cache, which may have {most} of "
            f"{counted(kv.block_size, 'token')} now: {advice}."
        )

    @property
    def max_step_tokens(self) -> int:
        return self.scheduler.limits.max_num_batched_tokens

    @property
    def min_step_tokens(self) -> int:
        return self.scheduler.limits.max_num_seqs

    def limit_steps(self, max_tokens: int, max_seqs: int | None = None) -> None:
        limits = self.scheduler.limits
        self.scheduler.limits = replace(
            limits, max_num_batched_tokens=max_tokens, max_num_seqs=max_seqs or limits.max_num_seqs
        )

    def retune(self, spec: ModelSpec, size: StepSize) -> None:
        super().retune(spec, size)
        threshold = spec.engine.long_prefill_token_threshold
        self.scheduler.limits = replace(self.scheduler.limits, long_prefill_token_threshold=threshold)

    # --- what has been computed -----------------------------------------------------------------------------

    def _read(self, batch: Schedule, output: StepOutput) -> tuple[list[Delivery], StatsButTimes]:
        token_ids = [] if output.token_ids is None else output.token_ids.tolist()
        now = time.monotonic()
        for prompt in output.prompt_logprobs:
            self._add_prompt_logprobs(prompt)
        logprobs = self._logprobs(output, token_ids)
        self._counts.read((item.sequence for item in output.sampled), now)
        for item in batch.items:  # before any of them ends, and frees its blocks
            if item.sequence.status is Status.RUNNING:
                self.scheduler.kv.cache_computed(item.sequence)
        deliveries: list[Delivery] = []
        for i, (item, token_id) in enumerate(zip(output.sampled, token_ids, strict=True)):
            deliveries += self._append_token(item.sequence, token_id, logprobs.get(i))
        return deliveries, self._counts.step()

    def _lose(self, suspect: list[Schedule], error: BaseException) -> list[Delivery]:
        """What the steps were to write into the cache can't be trusted: every cached prefix is forgotten."""
        broken = [item.sequence for schedule in suspect for item in schedule.items]
        lost = _requests_of(broken if suspect else self.scheduler.unfinished)
        failure = EngineFailedError(
            f"The engine of {self.name} failed while running this request; try it again."
        )
        self._owed = [partial(request.stream.fail, failure) for request in lost]
        for request in lost:
            self._owed += [
                self._finish(s, "error") for s in request.sequences if s.status is not Status.FINISHED
            ]
        self._blocks.reset_prefix_cache()
        self._blocks.check_integrity()
        owed, self._owed = self._owed, []
        return owed

    def _lose_all(self, error: BaseException) -> list[Delivery]:
        deliveries, self._owed = self._owed, []
        failure = EngineFailedError(f"The engine of {self.name} has failed and is out of service.")
        abandoned = self.scheduler.abandon()
        deliveries += [partial(request.stream.fail, failure) for request in _requests_of(abandoned)]
        for sequence in abandoned:
            self._rows.leave(sequence)
            deliveries.append(self._finished(self._counts.request(sequence, "error")))
        return deliveries

    def idle(self) -> None:
        self._blocks.release_idle_pages()
        self._blocks.check_integrity()

    def rest(self) -> None:
        self._blocks.reset_prefix_cache()
        self.idle()

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
            try:
                chunk = sequence.output.append(token_id, logprob)
            except EngineError as error:  # its tokenizer can't write it: nobody else's concern
                return self._fail_request(request, error)
        if sequence.num_output_tokens <= 1:
            request.stream.cached_tokens = max(request.stream.cached_tokens, sequence.num_cached_tokens)
        deliveries: list[Delivery] = [partial(request.stream.push, chunk)]
        if chunk.finish_reason is not None:
            deliveries.append(self._finish(sequence, chunk.finish_reason))
        return deliveries

    def _finish(self, sequence: Sequence, reason: FinishReason) -> Delivery:
        self._rows.leave(sequence)
        self.scheduler.finish(sequence)
        return self._finished(self._counts.request(sequence, reason))

    def _add_prompt_logprobs(self, prompt: PromptLogprobs) -> None:
        request = prompt.sequence.request
        if prompt.sequence.index:
            return
        token_ids = request.prompt_token_ids[prompt.first : prompt.first + len(prompt.logprobs.chosen)]
        if not isinstance(request.stream.prompt_logprobs, PromptEntries):
            asked = request.sampling.prompt_logprobs or 0
            request.stream.prompt_logprobs = PromptEntries(self._tokenizer, asked)
        request.stream.prompt_logprobs.add(prompt.first, token_ids, prompt.logprobs)

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
    return distinct(sequence.request for sequence in sequences)


def _cut_top(entry: TokenLogprob, sequence: Sequence) -> TokenLogprob:
    """Only as many alternatives as this request asked for."""
    wanted = sequence.request.sampling.logprobs or 0
    return replace(entry, top=entry.top[:wanted])
