"""Decides what the next step computes: running decodes, then prompts in chunks, then new requests.

A step is a packed mix of sequences, each with the tokens it still has to run: one for a decode, a chunk for a
prompt. A scheduled step counts as computed, so that the next one can be scheduled before its tokens are read.
Requests begin by priority and in turns (`waiting_line`), each with the blocks of its whole prompt from the
start, so that it comes to sample a token whatever other engines do above their floors. When blocks run out
the newest running sequence is preempted: its blocks are freed (their contents stay in the prefix cache as
long as nobody needs them) and it waits to be computed again. So is one whose client doesn't read: it waits in
no line then. Touched by the device-loop thread only; knows no torch, so it is tested without a model.
"""

from bisect import insort
from collections import Counter
from dataclasses import dataclass

from onecard.engines.paged.kv_cache_manager import KVCacheManager
from onecard.engines.paged.request import Request, Sequence, Status
from onecard.engines.paged.schedule import Schedule, ScheduledSequence
from onecard.engines.paged.waiting_line import WaitingLine

PROMPT_LOGPROBS_CHUNK = 128
"""Prompt tokens a step may compute of a request that wants a logit row for each of them."""


@dataclass(frozen=True)
class SchedulerLimits:
    """What one step may hold.

    `max_num_seqs` sequences run at once, `max_num_batched_tokens` are computed in a step, at most
    `long_prefill_token_threshold` of one prompt (0: no cap of its own). A preempted sequence resumes only
    when `resume_headroom` blocks are free beside its own, or one for each running sequence if those are more,
    so that it isn't preempted again at once.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    long_prefill_token_threshold: int = 0
    resume_headroom: int = 0


class Scheduler:
    def __init__(self, kv: KVCacheManager, limits: SchedulerLimits):
        self.kv = kv
        self.limits = limits
        self.waiting = WaitingLine()
        self.running: list[Sequence] = []
        self.paused: set[Sequence] = set()
        self._places: Counter[str] = Counter()
        """Sequences that run, by group; only of those that have any."""
        self._new: list[Sequence] = []
        """Came since the last step was scheduled."""

    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        for sequence in request.sequences:
            self._get_in_line(sequence)
            self._new.append(sequence)

    def blocks_to_end(self, sequence: Sequence) -> int:
        """What it holds before its last token, as far as its client said when that will be; at least what it
        has come to. The last token itself is never run."""
        asked = sequence.request.sampling.max_tokens or 1
        longest = max(sequence.num_prompt_tokens + asked - 1, sequence.num_tokens)
        return self.kv.blocks_for(longest)

    def schedule(self, now: float, max_tokens: int | None = None) -> Schedule:
        """Choose the next step and take its blocks. `now` in seconds, for the requests' own records;
        `max_tokens` bounds this step below the engine's own limit."""
        schedule = Schedule()
        self._refuse_new(schedule)
        self._yield_place(schedule)
        num_yielded = len(schedule.preempted)
        most = self.limits.max_num_batched_tokens
        budget = self._schedule_running(schedule, most if max_tokens is None else min(most, max_tokens))
        if len(schedule.preempted) == num_yielded:
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

    def _yield_place(self, schedule: Schedule) -> None:
        """Where all places are taken, a group that holds several gives up its newest for one that holds none:
        else who comes beside a large request would wait until some of it ends. One in a step."""
        if len(self.running) < self.limits.max_num_seqs or len(self._places) == len(self.running):
            return
        newcomer = next((s for s in self._next_in_line() if self._may_be_made_room_for(s)), None)
        if newcomer is None:
            return
        victim = next(s for s in reversed(self.running) if self._places[s.request.group] > 1)
        needed = self._needed(newcomer, self.kv.find_cached(newcomer))
        room = self.kv.pool.num_free_blocks() + len(victim.block_table)
        if newcomer.request.priority <= victim.request.priority and needed <= room:
            newcomer.was_made_room_for = True
            self.preempt(victim)
            schedule.preempted.append(victim)

    def _may_be_made_room_for(self, sequence: Sequence) -> bool:
        holds_none = sequence.request.group not in self._places
        return holds_none and not sequence.num_in_flight and not sequence.was_made_room_for

    def _next_in_line(self) -> list[Sequence]:
        """No more are looked at in one step than may run, and those who might: host time."""
        most = self.limits.max_num_seqs
        return self.waiting.first(most + max(most - len(self.running), 0) + 1)

    def _schedule_waiting(self, schedule: Schedule, budget: int, now: float) -> None:
        """Those first of whose group nothing runs."""
        if not self.waiting or budget <= 0 or len(self.running) >= self.limits.max_num_seqs:
            return
        in_flight = self._hashes_in_flight()
        in_line = self._next_in_line()
        if self._places:
            in_line.sort(key=lambda s: (s.request.priority, s.request.group in self._places))
        num_passed, most = 0, self.limits.max_num_seqs
        for sequence in in_line:
            if budget <= 0 or len(self.running) >= most or num_passed > most:
                break
            if sequence.num_in_flight:  # preempted under a step whose token it needs to go on
                num_passed += 1
                schedule.num_deferred += 1
                continue
            if self._is_too_large(sequence):
                self._refuse(sequence, schedule)
                continue
            cached = [] if sequence.awaited_hash in in_flight else self.kv.find_cached(sequence)
            if self._is_in_flight(sequence, len(cached), in_flight):
                num_passed += 1
                schedule.num_deferred += 1
                continue
            needed = self._needed(sequence, cached)
            if needed > self.kv.pool.num_free_blocks() or not self._admit(sequence, cached):
                if not self._may_be_passed(needed):
                    break
                num_passed += 1
                continue
            self.waiting.begin(sequence)
            self._start_running(sequence, schedule, now)
            num_tokens = self._chunk(sequence, budget)
            schedule.items.append(ScheduledSequence.take(sequence, num_tokens))
            budget -= num_tokens
            in_flight.update(sequence.block_hashes[len(cached) :])

    def _refuse_new(self, schedule: Schedule) -> None:
        """Those who come with more than the engine may ever have hear of it before they begin."""
        for sequence in self._new:
            too_large = self.blocks_to_end(sequence) > self.kv.pool.most_blocks_ever
            if too_large and sequence.status is Status.WAITING:
                self._refuse(sequence, schedule)
        self._new = []

    def _refuse(self, sequence: Sequence, schedule: Schedule) -> None:
        self.waiting.leave(sequence)
        sequence.status = Status.FINISHED
        schedule.too_large.append(sequence)

    def _is_too_large(self, sequence: Sequence) -> bool:
        """Whether it can't run beside the models that are awake now; an answer that has begun waits for them
        to sleep, if that can help."""
        pool = self.kv.pool
        begun = any(s.first_scheduled_time is not None for s in sequence.request.sequences)
        most = pool.most_blocks_ever if begun else pool.max_blocks
        return self.kv.blocks_for(sequence.num_tokens) > most

    def _get_in_line(self, sequence: Sequence) -> None:
        self.waiting.join(sequence, self.kv.blocks_for(sequence.num_tokens))

    def _hashes_in_flight(self) -> set[bytes]:
        """Full blocks that running sequences are about to compute, or to offer to the cache."""
        hashes: set[bytes] = set()
        for sequence in self.running:
            if len(sequence.block_hashes) > sequence.num_offered_blocks:
                hashes.update(sequence.block_hashes[sequence.num_offered_blocks :])
        return hashes

    def _is_in_flight(self, sequence: Sequence, num_cached: int, in_flight: set[bytes]) -> bool:
        """Whether somebody is computing this very prefix right now: wait, and find it in the cache. The last
        block of it is the one to wait for, so that nobody looks again before."""
        if sequence.awaited_hash in in_flight:
            return True
        last_useful = (sequence.num_tokens - 1) // self.kv.block_size
        hashes = sequence.block_hashes[num_cached:last_useful]
        if not hashes or hashes[0] not in in_flight:
            sequence.awaited_hash = None
            return False
        sequence.awaited_hash = next(block for block in reversed(hashes) if block in in_flight)
        return True

    def _needed(self, sequence: Sequence, cached: list[int]) -> int:
        """Free blocks that there must be for a waiting sequence to start: for all its tokens, less those of
        its prefix `cached` that somebody holds, with headroom for one that was preempted."""
        total, pool = self.kv.blocks_for(sequence.num_tokens), self.kv.pool
        held = len(cached) - pool.num_unreferenced(cached)
        if not sequence.num_preemptions:
            return total - held
        if self.running:  # a page, and a block for each that goes on growing
            return total - held + max(self.limits.resume_headroom, len(self.running))
        most = pool.floor_blocks if total <= pool.floor_blocks else pool.max_blocks
        return total - held + max(0, min(self.limits.resume_headroom, most - total))

    def _admit(self, sequence: Sequence, cached: list[int]) -> bool:
        """Start a waiting sequence with the blocks of all its tokens."""
        self.kv.start(sequence, cached)
        if self.kv.allocate_slots(sequence, sequence.num_uncomputed_tokens):
            return True
        self.kv.free(sequence)
        return False

    def _may_be_passed(self, needed: int) -> bool:
        """Whether others may go before a sequence that lacks some of its `needed` blocks: while it would lack
        them even if nothing else of this engine ran. It waits for other engines then, not for its own."""
        free = self.kv.pool.num_free_blocks()
        return free > 0 and needed > free + self.kv.pool.num_used_blocks

    def _start_running(self, sequence: Sequence, schedule: Schedule, now: float) -> None:
        sequence.status = Status.RUNNING
        insort(self.running, sequence, key=lambda s: s.order)
        self._places[sequence.request.group] += 1
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
        self._stop_running(sequence)
        sequence.status = Status.WAITING
        sequence.num_preemptions += 1
        self._get_in_line(sequence)

    def pause(self, request: Request) -> None:
        """Nothing of the request is computed, and it holds nothing, before it is resumed."""
        for sequence in request.sequences:
            if sequence.status in (Status.RUNNING, Status.WAITING):
                self._leave(sequence, Status.PAUSED)
                self.paused.add(sequence)

    def resume(self, request: Request) -> None:
        """Back in line, at its old place; what it has computed is computed again unless it is cached."""
        for sequence in request.sequences:
            if sequence.status is Status.PAUSED:
                self.paused.remove(sequence)
                sequence.status = Status.WAITING
                self._get_in_line(sequence)

    def finish(self, sequence: Sequence) -> None:
        """The sequence is done, aborted or failed: whatever it holds is freed."""
        self._leave(sequence, Status.FINISHED)

    def _leave(self, sequence: Sequence, to: Status) -> None:
        before, sequence.status = sequence.status, to  # also where the books turn out to be wrong
        if before is Status.RUNNING:
            self._stop_running(sequence)
        elif before is Status.WAITING:
            self.waiting.leave(sequence)
        elif before is Status.PAUSED:
            self.paused.remove(sequence)

    def _stop_running(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        group = sequence.request.group
        self._places[group] -= 1
        if not self._places[group]:
            del self._places[group]
        self.kv.free(sequence)

    @property
    def unfinished(self) -> list[Sequence]:
        return [*self.running, *self.waiting, *self.paused]

    def abandon(self) -> list[Sequence]:
        """Every sequence is done, and all blocks are given back, whatever state the books are in."""
        abandoned = self.unfinished
        self.waiting, self.running, self.paused, self._new = WaitingLine(), [], set(), []
        self._places = Counter()
        for sequence in abandoned:
            sequence.status = Status.FINISHED
            sequence.block_table = []
        self.kv.pool.abandon()
        return abandoned
