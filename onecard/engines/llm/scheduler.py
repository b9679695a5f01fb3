"""Decides what the next step computes: running decodes, then prompts in chunks, then new requests.

A step is a packed mix of sequences, each with the tokens it still has to run: one for a decode, a chunk for a
prompt. A scheduled step counts as computed, so that the next one can be scheduled before its tokens are read.
Requests run in order of (priority, arrival). When blocks run out the newest running sequence is
preempted: its blocks are freed (their contents stay in the prefix cache as long as nobody needs them) and it
waits to be computed again. Touched by the device-loop thread only; knows no torch, so it is tested without a
model.
"""

from bisect import insort
from dataclasses import dataclass, field

from onecard.engines.llm.kv_cache_manager import KVCacheManager
from onecard.engines.llm.request import Request, Sequence, Status
from onecard.engines.runtime.cost_model import StepShape

PROMPT_LOGPROBS_CHUNK = 128
"""Prompt tokens a step may compute of a request that wants a logit row for each of them."""


@dataclass(frozen=True)
class SchedulerLimits:
    """What one step may hold.

    `max_num_seqs` sequences run at once, `max_num_batched_tokens` are computed in a step, at most
    `long_prefill_token_threshold` of one prompt (0: no cap of its own). A preempted sequence resumes only
    when `resume_headroom` blocks are free beside its own, and one for each running sequence, so that it isn't
    preempted again at once.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    long_prefill_token_threshold: int = 0
    resume_headroom: int = 0


@dataclass(frozen=True)
class ScheduledSequence:
    """`num_tokens` of `sequence` run in this step, from position `start` on.

    `samples`: the step reaches the sequence's last token, so its output token number `output_index` is
    sampled.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    samples: bool
    output_index: int

    @classmethod
    def take(cls, sequence: Sequence, num_tokens: int) -> "ScheduledSequence":
        """Schedule the sequence's next `num_tokens`: from now on they count as computed."""
        start = sequence.num_computed_tokens
        samples = start + num_tokens == sequence.num_tokens
        item = cls(sequence, start, num_tokens, samples, sequence.num_launched_outputs)
        sequence.num_computed_tokens += num_tokens
        sequence.num_in_flight += samples
        return item

    def give_back(self) -> None:
        """The newest step of the sequence never ran: what it was to compute is still to be computed."""
        self.sequence.num_computed_tokens -= self.num_tokens
        self.sequence.num_in_flight -= self.samples


@dataclass
class Schedule:
    """One step: decodes first, then prefill chunks."""

    items: list[ScheduledSequence] = field(default_factory=list)
    num_decodes: int = 0
    preempted: list[Sequence] = field(default_factory=list)
    prefix_queries: int = 0
    prefix_hits: int = 0
    num_deferred: int = 0
    """Waiting sequences that wait for something else than room: a prefix, or a token, in flight."""
    too_large: list[Sequence] = field(default_factory=list)
    """Finished for good: they need more blocks than the engine may have, with nobody else in the way."""

    @property
    def num_tokens(self) -> int:
        return sum(item.num_tokens for item in self.items)

    @property
    def shape(self) -> StepShape:
        """What it costs, for the cost model."""
        context = sum(item.start + item.num_tokens for item in self.items)
        return StepShape(self.num_tokens, len(self.items), context)


class Scheduler:
    def __init__(self, kv: KVCacheManager, limits: SchedulerLimits):
        self.kv = kv
        self.limits = limits
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []

    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        for sequence in request.sequences:
            insort(self.waiting, sequence, key=lambda s: s.order)

    def schedule(self, now: float, max_tokens: int | None = None) -> Schedule:
        """Choose the next step and take its blocks. `now` in seconds, for the requests' own records;
        `max_tokens` bounds this step below the engine's own limit."""
        schedule = Schedule()
        most = self.limits.max_num_batched_tokens
        budget = self._schedule_running(schedule, most if max_tokens is None else min(most, max_tokens))
        if not schedule.preempted:
            self._schedule_waiting(schedule, budget, now)
        schedule.items.sort(key=lambda item: item.num_tokens != 1)
        schedule.num_decodes = sum(item.num_tokens == 1 for item in schedule.items)
        return schedule

    def undo(self, schedule: Schedule) -> None:
        """Take back the newest schedule, just made: its step couldn't be launched.

        Its sequences keep their blocks and go on running, also those that it has started. What it preempted
        stays preempted.
        """
        for item in schedule.items:
            item.give_back()

    def _schedule_running(self, schedule: Schedule, budget: int) -> int:
        """Decodes before prompts, each in order of age; returns the tokens left of the budget."""
        chosen: set[int] = set()
        by_kind = sorted(self.running, key=lambda s: s.num_uncomputed_tokens != 1)
        for sequence in by_kind:
            if budget == 0:
                break
            if sequence.status is not Status.RUNNING or not sequence.may_step:
                continue
            num_tokens = self._chunk(sequence, budget)
            if self._make_room(sequence, num_tokens, chosen, schedule):
                schedule.items.append(ScheduledSequence.take(sequence, num_tokens))
                chosen.add(id(sequence))
                budget -= num_tokens
        return budget

    def _make_room(self, sequence: Sequence, num_tokens: int, chosen: set[int], schedule: Schedule) -> bool:
        """Take blocks for `num_tokens`, preempting the newest sequences that this step hasn't chosen."""
        while not self.kv.allocate_slots(sequence, num_tokens):
            victim = next((s for s in reversed(self.running) if id(s) not in chosen), sequence)
            self.preempt(victim)
            self.kv.pool.note_preemption()
            schedule.preempted.append(victim)
            if victim is sequence:
                return False
        return True

    def _schedule_waiting(self, schedule: Schedule, budget: int, now: float) -> None:
        if not self.waiting:
            return
        in_flight = self._hashes_in_flight()
        index = 0
        while budget > 0 and index < len(self.waiting) and len(self.running) < self.limits.max_num_seqs:
            sequence = self.waiting[index]
            if sequence.num_in_flight:  # preempted under a step whose token it needs to go on
                index += 1
                schedule.num_deferred += 1
                continue
            if self.kv.blocks_for(sequence.num_tokens) > self.kv.pool.max_blocks:
                del self.waiting[index]
                sequence.status = Status.FINISHED
                schedule.too_large.append(sequence)
                continue
            cached = self.kv.find_cached(sequence)
            if self._is_in_flight(sequence, len(cached), in_flight):
                index += 1
                schedule.num_deferred += 1
                continue
            if not self._admit(sequence, cached, budget):
                break
            del self.waiting[index]
            self._start_running(sequence, schedule, now)
            num_tokens = self._chunk(sequence, budget)
            schedule.items.append(ScheduledSequence.take(sequence, num_tokens))
            budget -= num_tokens
            in_flight.update(sequence.block_hashes[len(cached) :])

    def _hashes_in_flight(self) -> set[bytes]:
        """Full blocks that running sequences are about to compute, or to offer to the cache."""
        hashes: set[bytes] = set()
        for sequence in self.running:
            if len(sequence.block_hashes) > sequence.num_offered_blocks:
                hashes.update(sequence.block_hashes[sequence.num_offered_blocks :])
        return hashes

    def _is_in_flight(self, sequence: Sequence, num_cached: int, in_flight: set[bytes]) -> bool:
        """Whether somebody is computing this very prefix right now: wait a step and find it in the cache."""
        last_useful = (sequence.num_tokens - 1) // self.kv.block_size
        hashes = sequence.block_hashes
        return num_cached < min(last_useful, len(hashes)) and hashes[num_cached] in in_flight

    def _admit(self, sequence: Sequence, cached: list[int], budget: int) -> bool:
        """Start a waiting sequence if its whole prompt has room; a preempted one waits for headroom
        besides."""
        needed = self.kv.blocks_for(sequence.num_tokens) - len(cached)
        headroom = 0
        if sequence.num_preemptions and self.running:  # a page, and a block for each that goes on growing
            headroom = max(self.limits.resume_headroom, len(self.running))
        if self.kv.pool.num_free_blocks() < needed + headroom:
            return False
        self.kv.start(sequence, cached)
        if self.kv.allocate_slots(sequence, self._chunk(sequence, budget)):
            return True
        self.kv.free(sequence)
        return False

    def _start_running(self, sequence: Sequence, schedule: Schedule, now: float) -> None:
        sequence.status = Status.RUNNING
        insort(self.running, sequence, key=lambda s: s.order)
        if sequence.first_scheduled_time is None:
            sequence.first_scheduled_time = now
            sequence.num_cached_tokens = sequence.num_computed_tokens
            schedule.prefix_queries += sequence.num_tokens
            schedule.prefix_hits += sequence.num_cached_tokens

    def _chunk(self, sequence: Sequence, budget: int) -> int:
        num_tokens = min(sequence.num_uncomputed_tokens, budget)
        if sequence.num_uncomputed_tokens > 1:
            if self.limits.long_prefill_token_threshold:
                num_tokens = min(num_tokens, self.limits.long_prefill_token_threshold)
            if sequence.request.sampling.prompt_logprobs is not None:
                num_tokens = min(num_tokens, PROMPT_LOGPROBS_CHUNK)
        return num_tokens

    def preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's blocks and put it back in line, at its old place."""
        self.running.remove(sequence)
        self.kv.free(sequence)
        sequence.status = Status.WAITING
        sequence.num_preemptions += 1
        insort(self.waiting, sequence, key=lambda s: s.order)

    def finish(self, sequence: Sequence) -> None:
        """The sequence is done, aborted or failed: whatever it holds is freed."""
        status, sequence.status = sequence.status, Status.FINISHED
        if status is Status.RUNNING:
            self.running.remove(sequence)
            self.kv.free(sequence)
        elif status is Status.WAITING:
            self.waiting.remove(sequence)

    def abandon(self) -> list[Sequence]:
        """Every sequence is done, and all blocks are given back, whatever state the books are in."""
        abandoned = [*self.running, *self.waiting]
        self.running, self.waiting = [], []
        for sequence in abandoned:
            sequence.status = Status.FINISHED
            sequence.block_table = []
        self.kv.pool.abandon()
        return abandoned
