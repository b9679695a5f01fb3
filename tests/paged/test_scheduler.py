import random
from collections import Counter

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from onecard.engines.api import SamplingParams
from onecard.engines.memory.block_pool import BlockPool
from onecard.engines.paged.logits import LogitsProcessor
from onecard.engines.paged.request import Status
from onecard.engines.paged.schedule import Schedule


def lengths(schedule) -> list[int]:
    return [item.num_tokens for item in schedule.items]


def test_a_prompt_runs_in_chunks_of_the_budget_and_samples_at_its_end(world):
    w = world()
    request = w.request(list(range(40)))
    assert [lengths(w.run()) for _ in range(4)] == [[16], [16], [8], [1]]
    assert request.sequences[0].num_output_tokens == 2


def test_decodes_come_first_and_prompts_fill_the_rest_of_the_budget(world):
    w = world()
    old = w.request(list(range(5)))
    w.run()
    w.request(list(range(100, 140)))
    schedule = w.run()
    assert lengths(schedule) == [1, 15]
    assert schedule.num_decodes == 1
    assert schedule.items[0].sequence is old.sequences[0]


def test_a_long_prompt_is_capped_by_its_own_threshold(world):
    w = world(long_prefill_token_threshold=6)
    w.request(list(range(20)))
    w.request(list(range(50, 60)))
    assert lengths(w.run()) == [6, 6]


def test_no_more_sequences_than_max_num_seqs_run_at_once(world):
    w = world(max_num_seqs=2)
    for i in range(4):
        w.request([i, i, i])
    assert len(w.run().items) == 2
    assert len(w.scheduler.waiting) == 2


def test_a_cached_prefix_is_not_computed_again(world):
    w = world()
    first = w.request(list(range(12)))
    w.run()
    w.scheduler.finish(first.sequences[0])
    second = w.request([*range(12), 99, 98])
    schedule = w.run()
    assert lengths(schedule) == [2]
    assert second.sequences[0].num_cached_tokens == 12
    assert (schedule.prefix_queries, schedule.prefix_hits) == (14, 12)


def test_a_fully_cached_prompt_still_computes_one_token(world):
    w = world()
    first = w.request(list(range(12)))
    w.run()
    w.scheduler.finish(first.sequences[0])
    w.request(list(range(12)))
    assert lengths(w.run()) == [4]


def test_equal_prompts_that_arrive_together_are_computed_once(world):
    w = world(max_num_batched_tokens=24)
    requests = [w.request(list(range(12)), n=2) for _ in range(3)]
    assert lengths(w.run()) == [12]
    assert lengths(w.run()) == [1, 4, 4, 4, 4, 4]
    sequences = [s for request in requests for s in request.sequences]
    assert sum(s.num_cached_tokens for s in sequences) == 5 * 8
    assert all(s.num_output_tokens for s in sequences)


def test_an_aborted_leader_hands_the_prefix_on(world):
    w = world(max_num_batched_tokens=8)
    leader, follower = w.request(list(range(40))), w.request(list(range(40)))
    assert lengths(w.run()) == [8]
    w.scheduler.finish(leader.sequences[0])
    while follower.sequences[0].num_output_tokens == 0:
        assert w.run().items
    assert follower.sequences[0].num_cached_tokens == 8


def test_different_salts_share_no_prefix(world):
    w = world()
    first = w.request(list(range(12)))
    w.run()
    w.scheduler.finish(first.sequences[0])
    second = w.request(list(range(12)))
    second.cache_salt = b"tenant"
    assert lengths(w.run()) == [12]


def test_prompt_logprobs_skip_the_cache(world):
    w = world()
    first = w.request(list(range(12)))
    w.run()
    w.scheduler.finish(first.sequences[0])
    w.request(list(range(12)), prompt_logprobs=0)
    assert lengths(w.run()) == [12]


def test_the_newest_is_preempted_and_resumes_where_it_was_in_line(world):
    w = world(num_pages=4, caching=False)
    old, new = w.request([1] * 14), w.request([2] * 13)
    w.run()
    w.run()
    while not new.sequences[0].num_preemptions:
        w.run()
    assert old.sequences[0].status is Status.RUNNING
    assert list(w.scheduler.waiting) == [new.sequences[0]]
    sampled = new.sequences[0].num_output_tokens
    w.scheduler.finish(old.sequences[0])
    w.run()
    w.run()
    assert new.sequences[0].status is Status.RUNNING
    assert new.sequences[0].num_output_tokens > sampled
    assert old.sequences[0].num_preemptions == 0
    assert w.pages.preemptions == {"memory": 1}


def test_a_waiting_request_that_has_no_room_takes_nothing(world):
    w = world(num_pages=3)
    w.request([1] * 12)
    w.run()
    late = w.request([2] * 16)
    w.run()
    assert late.sequences[0].status is Status.WAITING
    assert not late.sequences[0].block_table


def test_a_prompt_that_another_model_leaves_no_room_for_waits_instead_of_running_in_part(world):
    w = world(num_pages=10, floor=0, max_num_batched_tokens=8)
    other = BlockPool("other", w.pages, lambda page: range(page, page + 1))
    w.pages.add_engine("other", 0, 10, other)
    taken = other.get_new_blocks(6)
    request = w.request([1] * 40)
    assert not w.run().items
    assert w.pool.num_used_blocks == 0
    other.free(taken)
    assert lengths(w.run()) == [8]
    assert request.sequences[0].status is Status.RUNNING


def test_lower_priority_numbers_go_first(world):
    w = world(max_num_seqs=1)
    late = w.request([1] * 4)
    urgent = w.request([2] * 4, priority=-1)
    w.run()
    assert [s.request for s in w.scheduler.running] == [urgent]
    assert [s.request for s in w.scheduler.waiting] == [late]


def test_a_step_is_scheduled_before_the_one_before_it_is_read(world):
    w = world()
    sequence = w.request(list(range(5))).sequences[0]
    first = w.launch()
    second = w.launch()
    assert [(i.start, i.num_tokens, i.output_index) for s in (first, second) for i in s.items] == [
        (0, 5, 0),
        (5, 1, 1),
    ]
    assert (sequence.num_output_tokens, sequence.num_in_flight) == (0, 2)
    w.read(first)
    w.read(second)
    assert (sequence.num_output_tokens, sequence.num_in_flight) == (2, 0)


def test_no_step_runs_ahead_of_the_last_token_that_was_asked_for(world):
    w = world()
    request = w.request([1, 2, 3])
    request.max_tokens = 2
    assert [len(w.launch().items) for _ in range(3)] == [1, 1, 0]


def test_a_token_that_decides_on_the_next_one_is_waited_for(world):
    w = world()
    sequence = w.request([1, 2, 3]).sequences[0]
    sequence.processor = LogitsProcessor(
        SamplingParams(presence_penalty=1.0), [1, 2, 3], [], torch.device("cpu")
    )
    first = w.launch()
    assert not w.launch().items
    w.read(first)
    assert len(w.launch().items) == 1


def test_a_sequence_preempted_in_flight_resumes_once_its_token_is_read(world):
    w = world()
    sequence = w.request([1, 2, 3]).sequences[0]
    flying = w.launch()
    w.scheduler.preempt(sequence)
    assert not w.launch().items
    w.read(flying)
    assert sequence.token_ids == [1, 2, 3, 7]
    assert lengths(w.run()) == [4]


def test_equal_prompts_wait_for_a_prefix_that_is_still_in_flight(world):
    w = world()
    for _ in range(2):
        w.request(list(range(12)))
    flying = w.launch()
    assert lengths(flying) == [12]
    waiting = w.launch()
    assert lengths(waiting) == [1], "only the first one goes on"
    assert (flying.num_deferred, waiting.num_deferred) == (1, 1)
    w.read(flying)
    assert lengths(w.launch()) == [1, 4], "the second finds two blocks in the cache"


def test_a_step_that_was_undone_is_scheduled_again_as_if_it_had_not_been(world):
    w = world()
    old = w.request(list(range(5))).sequences[0]
    w.run()
    flying = w.launch()
    new = w.request(list(range(100, 120))).sequences[0]
    undone = w.launch()
    assert [(i.sequence, i.start, i.num_tokens) for i in undone.items] == [(old, 6, 1), (new, 0, 15)]
    w.scheduler.undo(undone)
    w.check()
    assert (old.num_in_flight, old.num_computed_tokens, old.num_tokens) == (1, 6, 7)
    assert (new.status, new.num_in_flight, new.num_computed_tokens) == (Status.RUNNING, 0, 0)
    w.read(flying)
    again = w.scheduler.schedule(w.time, 8)
    assert [(i.sequence, i.start, i.num_tokens) for i in again.items] == [(old, 6, 1), (new, 0, 7)]
    assert (again.prefix_queries, again.preempted) == (0, [])
    w.read(again)
    assert lengths(w.run()) == [1, 13]
    assert (old.num_output_tokens, new.num_output_tokens) == (4, 1)


def test_an_undone_step_keeps_a_prefix_hit_and_its_preemptions(world):
    w = world(num_pages=5)
    first = w.request(list(range(12)))
    w.run()
    w.scheduler.finish(first.sequences[0])
    second = w.request([*range(12), 99, 98]).sequences[0]
    w.scheduler.undo(w.launch())
    assert (second.num_computed_tokens, second.num_cached_tokens) == (12, 12)
    late = w.request([50] * 14).sequences[0]
    undone = Schedule()
    while not undone.preempted:
        w.run()
        undone = w.launch()
        if not undone.preempted:
            w.read(undone)
    w.scheduler.undo(undone)
    assert (late.status, late.num_preemptions) == (Status.WAITING, 1)
    w.scheduler.finish(second)
    w.scheduler.finish(late)
    assert w.all_free()


def test_abandoning_leaves_nothing_and_nobody_behind(world):
    w = world()
    requests = [w.request([i] * 9, n=2) for i in range(6)]
    flying = w.launch()
    w.scheduler.preempt(w.scheduler.running[-1])
    abandoned = w.scheduler.abandon()
    assert {id(s) for s in abandoned} == {id(s) for r in requests for s in r.sequences}
    assert all(sequence.status is Status.FINISHED for sequence in abandoned)
    assert not w.scheduler.has_work()
    assert w.pages.free_pages == w.pages.num_pages
    w.read(flying)
    again = w.request([1, 2, 3])
    w.run()
    assert again.sequences[0].num_output_tokens == 1
    w.scheduler.finish(again.sequences[0])
    assert w.all_free()


def test_abandoning_works_with_books_that_do_not_add_up(world):
    w = world()
    w.request(list(range(20)))
    w.run()
    w.pool._book.refs.popitem()
    w.pool._book.num_free += 3
    w.scheduler.abandon()
    assert w.all_free()


def test_what_finds_no_room_beside_the_awake_is_sorted_out_instead_of_blocking_the_line(world):
    """A prompt that was fine when it came: a model that woke up has taken the pages since. An answer that has
    begun isn't cut off for that: it waits for the other to sleep, and lets others pass."""
    w = world(num_pages=10, floor=0)
    growing = w.request([1] * 15).sequences[0]
    w.run()
    long, short = w.request([2] * 40), w.request([3] * 4)
    short.max_tokens = 3
    assert w.pages.claim_home("other", range(10 - w.pages.free_pages, 10))
    assert w.pages.most("m") == 2
    seen = [w.run()]
    assert seen[0].too_large == long.sequences
    while not growing.num_preemptions:
        seen.append(w.run())
    assert w.scheduler.kv.blocks_for(growing.num_tokens) > w.pool.max_blocks
    while short.sequences[0].num_output_tokens < 3:
        assert not w.run().too_large
    w.scheduler.finish(short.sequences[0])
    assert not w.run().items
    assert list(w.scheduler.waiting) == [growing]
    w.pages.release_home("other")
    assert [item.sequence for item in w.run().items] == [growing]


def test_what_can_never_fit_is_refused_before_it_begins(world):
    """The client said how long the answer may be: better no than the half of it."""
    w = world(num_pages=10)  # 80 tokens
    ends_in_time, too_long = w.request([1] * 40, max_tokens=41), w.request([2] * 40, max_tokens=42, n=2)
    open_end = w.request([3] * 40)
    wanted = [w.scheduler.blocks_to_end(r.sequences[0]) for r in (ends_in_time, too_long, open_end)]
    assert wanted == [20, 21, 10]
    schedule = w.run()
    assert schedule.too_large == too_long.sequences
    assert [item.sequence for item in schedule.items] == ends_in_time.sequences
    assert w.run().too_large == []
    assert open_end.sequences[0].status is Status.WAITING


def test_a_prompt_has_all_its_blocks_when_it_begins(world):
    """Another engine that asks meanwhile finds them taken, and none has to give up what it has computed."""
    w = world(num_pages=6, floor=0, max_num_batched_tokens=4)
    w.request([1] * 24)
    w.run()
    assert w.pool.num_used_blocks == 6


def test_hits_that_nobody_holds_are_not_counted_twice(world):
    """They are the request's, and therefore not free for the rest of it."""
    w = world(num_pages=20, floor=0)
    other = BlockPool("other", w.pages, lambda page: range(2 * page, 2 * page + 2))
    w.pages.add_engine("other", 0, 20, other)
    first = w.request([1] * 80)
    while not first.sequences[0].num_output_tokens:
        w.run()
    w.scheduler.finish(first.sequences[0])
    taken = other.get_new_blocks(16)
    second = w.request([1] * 80 + [3] * 60).sequences[0]  # 35 blocks, 20 of them cached; 24 are to be had
    for _ in range(3):
        assert not w.run().items
    assert (second.status, second.num_preemptions, w.pool.num_used_blocks) == (Status.WAITING, 0, 0)
    other.free(taken)
    assert w.run().items[0].start == 80


def test_a_hit_that_somebody_holds_is_room_saved(world):
    w = world(num_pages=4, floor=0)
    w.request([1] * 15)
    w.run()
    other = BlockPool("other", w.pages, lambda page: range(2 * page, 2 * page + 2))
    w.pages.add_engine("other", 0, 4, other)
    assert other.get_new_blocks(2)
    late = w.request([1] * 15 + [2] * 4).sequences[0]  # 5 blocks, 3 of them held by the first; 2 are free
    w.run()
    assert (late.status, late.num_cached_tokens) == (Status.RUNNING, 12)


def test_others_may_pass_one_that_waits_for_another_model(world):
    """Bounded: once nothing but its own engine stands in its way, nobody passes any more."""
    w = world(num_pages=10, floor=0)
    other = BlockPool("other", w.pages, lambda page: range(2 * page, 2 * page + 2))
    w.pages.add_engine("other", 0, 10, other)
    taken = other.get_new_blocks(14)
    large = w.request([1] * 30).sequences[0]
    passers = [w.request([i] * 4).sequences[0] for i in (2, 3)]
    w.run()
    assert [s.status for s in passers] == [Status.RUNNING] * 2
    assert large.status is Status.WAITING
    other.free(taken[:4])
    late = w.request([9] * 4).sequences[0]
    w.run()
    assert [late.status, large.status] == [Status.WAITING] * 2, "own requests are all that keep it waiting"
    for sequence in passers:
        w.scheduler.finish(sequence)
    w.run()
    assert large.status is Status.RUNNING


def test_one_that_was_preempted_alone_resumes_with_a_page_to_grow_into(world):
    w = world(num_pages=10, floor=2, resume_headroom=2)
    other = BlockPool("other", w.pages, lambda page: range(2 * page, 2 * page + 2))
    w.pages.add_engine("other", 0, 10, other)
    taken = other.get_new_blocks(14)
    sequence = w.request([1] * 22).sequences[0]
    while not sequence.num_preemptions:
        w.run()
    assert w.scheduler.kv.blocks_for(sequence.num_tokens) == 7
    other.free(taken[:2])
    assert not w.run().items, "its 7 blocks are there, but no page besides"
    other.free(taken[2:4])
    assert w.run().items


@pytest.mark.parametrize(("length", "runs"), [(16, True), (17, False)])
def test_within_its_floor_a_preempted_one_asks_for_no_more(world, length, runs):
    w = world(num_pages=4, floor=2, resume_headroom=2)
    other = BlockPool("other", w.pages, lambda page: range(2 * page, 2 * page + 2))
    w.pages.add_engine("other", 2, 2, other)
    sequence = w.request([1] * length).sequences[0]
    sequence.num_preemptions = 1
    assert other.get_new_blocks(4)
    assert bool(w.run().items) is runs


@pytest.mark.parametrize("num_pages", [5, 9, 30])
def test_every_request_finishes_however_small_the_arena(world, num_pages):
    w = world(num_pages=num_pages, max_num_batched_tokens=8)
    rng = random.Random(num_pages)
    requests = [w.request([rng.randrange(50) for _ in range(rng.randint(1, 20))]) for _ in range(16)]
    wanted = {id(r): rng.randint(1, 18) for r in requests}
    for _ in range(4000):
        if not w.scheduler.has_work():
            break
        w.run()
        for request in requests:
            sequence = request.sequences[0]
            if sequence.status is Status.RUNNING and sequence.num_output_tokens >= wanted[id(request)]:
                w.scheduler.finish(sequence)
    assert not w.scheduler.has_work()
    assert w.all_free()


class SchedulerMachine(RuleBasedStateMachine):
    """Arrivals, steps, aborts and preemptions in any order, two steps in flight: the books always add up."""

    make_world = None

    @initialize(num_pages=st.integers(12, 40), budget=st.integers(1, 24), caching=st.booleans())
    def begin(self, num_pages: int, budget: int, caching: bool) -> None:
        assert SchedulerMachine.make_world is not None
        self.w = SchedulerMachine.make_world(num_pages, caching, max_num_batched_tokens=budget)
        self.sequences = []
        self.unread: list[Schedule] = []

    @rule(prompt=st.lists(st.integers(0, 2), min_size=1, max_size=30), n=st.integers(1, 3))
    def arrive(self, prompt: list[int], n: int) -> None:
        self.sequences += self.w.request(prompt, n).sequences

    @precondition(lambda self: len(self.unread) < 2)
    @rule()
    def launch(self) -> None:
        schedule = self.w.launch()
        self.unread.append(schedule)
        assert schedule.num_tokens <= self.w.scheduler.limits.max_num_batched_tokens
        assert [i.num_tokens == 1 for i in schedule.items] == sorted(
            (i.num_tokens == 1 for i in schedule.items), reverse=True
        )

    @precondition(lambda self: len(self.unread) < 2)
    @rule(max_tokens=st.integers(1, 24))
    def undo(self, max_tokens: int) -> None:
        """A step finds no memory; the next one is smaller."""
        before = {id(s): (s.num_computed_tokens, s.num_in_flight) for s in self.w.scheduler.running}
        schedule = self.w.launch()
        self.w.scheduler.undo(schedule)
        for item in schedule.items:
            sequence = item.sequence
            assert sequence in self.w.scheduler.running
            now = (sequence.num_computed_tokens, sequence.num_in_flight)
            assert now == before.get(id(sequence), (item.start, 0))
        smaller = self.w.scheduler.schedule(self.w.time, max_tokens)
        assert smaller.num_tokens <= max_tokens
        self.unread.append(smaller)

    @precondition(lambda self: self.unread)
    @rule()
    def read(self) -> None:
        self.w.read(self.unread.pop(0))

    @precondition(lambda self: self.w.scheduler.has_work())
    @rule(data=st.data())
    def end_one(self, data: st.DataObject) -> None:
        live = [s for s in self.sequences if s.status is not Status.FINISHED]
        self.w.scheduler.finish(data.draw(st.sampled_from(live)))

    @precondition(lambda self: self.w.scheduler.running)
    @rule()
    def recall(self) -> None:
        self.w.scheduler.preempt(self.w.scheduler.running[-1])

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), paused=st.booleans())
    def pause_or_resume(self, data: st.DataObject, paused: bool) -> None:
        request = data.draw(st.sampled_from(self.sequences)).request
        (self.w.scheduler.pause if paused else self.w.scheduler.resume)(request)
        assert not paused or all(s.status in (Status.PAUSED, Status.FINISHED) for s in request.sequences)

    @invariant()
    def books_add_up(self) -> None:
        if hasattr(self, "w"):
            self.w.check()
            scheduler = self.w.scheduler
            recounted = sum(scheduler.kv.blocks_for(s.num_tokens) for s in scheduler.waiting)
            assert scheduler.waiting.blocks == recounted
            assert scheduler._places == Counter(s.request.group for s in scheduler.running)
            limits = self.w.scheduler.limits
            assert len(self.w.scheduler.running) <= limits.max_num_seqs

    def teardown(self) -> None:
        if not hasattr(self, "w"):
            return
        for schedule in self.unread:
            self.w.read(schedule)
        for sequence in self.sequences:
            assert sequence.num_in_flight == 0
            if sequence.status is not Status.FINISHED:
                self.w.scheduler.finish(sequence)
        assert self.w.all_free()


def test_any_order_of_events_keeps_the_books(world):
    SchedulerMachine.make_world = staticmethod(world)
    machine = SchedulerMachine.TestCase
    machine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
    machine("runTest").runTest()


def test_a_paused_request_holds_nothing_and_goes_on_at_its_old_place(world):
    w = world(max_num_seqs=1)
    old, new = w.request([1] * 6), w.request([2] * 6)
    w.run()
    w.run()
    w.scheduler.pause(old)
    assert w.pool.num_used_blocks == 0
    assert not any(item.sequence.request is old for _ in range(3) for item in w.run().items)
    written = list(old.sequences[0].token_ids)
    w.scheduler.resume(old)
    assert next(iter(w.scheduler.waiting)) is old.sequences[0], "before whoever came later"
    w.scheduler.finish(new.sequences[0])
    w.run()
    assert old.sequences[0].token_ids[: len(written)] == written
    assert old.sequences[0].num_output_tokens == 3


def test_a_paused_request_waits_in_no_line_and_gives_the_running_their_places(world):
    w = world(max_num_seqs=2)
    silent = w.request([1] * 4, n=2)
    w.run()
    w.run()
    waits = w.request([2] * 4)
    w.scheduler.pause(silent)
    w.run()
    assert [s.request for s in w.scheduler.running] == [waits]
    assert not len(w.scheduler.waiting)
    w.scheduler.finish(waits.sequences[0])
    assert not w.scheduler.has_work(), "the loop may sleep"
    for sequence in silent.sequences:
        w.scheduler.finish(sequence)
    assert w.all_free()


def test_a_token_in_flight_of_a_paused_request_is_kept(world):
    w = world()
    request = w.request(list(range(5)))
    [sequence] = request.sequences
    schedule = w.launch()
    w.scheduler.pause(request)
    w.scheduler.resume(request)
    assert not w.launch().items, "its last token isn't known yet"
    w.read(schedule)
    assert sequence.num_output_tokens == 1
    w.run()
    assert sequence.num_output_tokens == 2


def test_answers_to_one_prompt_hash_it_once(world, monkeypatch):
    from onecard.engines.paged import kv_cache_manager

    calls = []
    real = kv_cache_manager.hash_block
    monkeypatch.setattr(kv_cache_manager, "hash_block", lambda *given: calls.append(given) or real(*given))
    w = world(max_num_seqs=32)
    w.request(list(range(40)), n=30)
    w.run()
    assert len(calls) == 10, "blocks of the prompt"


def test_who_waits_for_a_prefix_in_flight_is_not_looked_up_in_each_step(world, monkeypatch):
    w = world(max_num_seqs=32, long_prefill_token_threshold=4)
    w.request(list(range(40)), n=30)
    looked = []
    real = w.scheduler.kv.find_cached
    monkeypatch.setattr(
        w.scheduler.kv, "find_cached", lambda sequence: looked.append(sequence) or real(sequence)
    )
    for _ in range(8):
        assert w.run().num_deferred == 29
    assert len(looked) == 30


def test_a_step_passes_over_no_more_of_those_who_wait_than_may_run(world):
    w = world(max_num_seqs=4, long_prefill_token_threshold=4)
    for _ in range(50):
        w.request(list(range(40)))
    assert w.run().num_deferred == 5


def test_answers_that_wait_share_their_prompt_s_tokens_and_copy_them_with_their_first(world):
    w = world(max_num_seqs=1)
    request = w.request(list(range(5)), n=3)
    for sequence in request.sequences:
        sequence.token_ids = request.prompt_token_ids
    w.run()
    first, *others = request.sequences
    assert first.token_ids == [*range(5), 7]
    assert all(sequence.token_ids is request.prompt_token_ids for sequence in others)
    assert request.prompt_token_ids == list(range(5))


def test_who_comes_beside_a_request_that_holds_every_place_gets_one_of_them(world):
    w = world(max_num_seqs=4)
    huge = [w.request([i] * 3, group="huge") for i in range(10)]
    w.run()
    small = w.request([20] * 3)
    schedule = w.run()
    assert small.sequences[0].status is Status.RUNNING
    newest = huge[3].sequences[0]
    assert schedule.preempted == [newest]
    w.scheduler.finish(small.sequences[0])
    w.run()
    assert newest.status is Status.RUNNING, "it goes on before the others of its group"


def test_a_group_that_holds_one_place_keeps_it(world):
    w = world(max_num_seqs=4)
    running = [w.request([i] * 3) for i in range(3)] + [w.request([4] * 3)]
    w.run()
    late = w.request([20] * 3)
    for _ in range(3):
        assert not w.run().preempted
    assert late.sequences[0].status is Status.WAITING
    assert all(r.sequences[0].status is Status.RUNNING for r in running)


def test_a_request_s_further_answers_do_not_come_back_before_those_who_have_none(world):
    """Else each place that gets free would be taken back at once."""
    w = world(max_num_seqs=4)
    w.request([1] * 3, n=4)
    w.run()
    w.run()
    singles = [w.request([10 + i] * 3) for i in range(6)]
    preempted = [len(w.run().preempted) for _ in range(8)]
    assert sum(preempted) == 3, "down to one answer of four"
    w.scheduler.finish(singles[0].sequences[0])
    assert not w.run().preempted
    assert singles[3].sequences[0].status is Status.RUNNING


def test_nobody_makes_room_for_one_that_is_less_urgent(world):
    w = world(max_num_seqs=2)
    w.request([1] * 3, n=2, priority=-1)
    w.run()
    w.run()
    w.request([2] * 3)
    assert not w.run().preempted


def test_nobody_makes_room_for_one_that_has_not_room_enough_then(world):
    w = world(num_pages=4, max_num_seqs=2)
    w.request([1] * 7, n=2)
    w.run()
    w.run()
    large = w.request([2] * 32)
    for _ in range(3):
        assert not w.run().preempted
    assert large.sequences[0].status is Status.WAITING


def test_every_request_gets_on_beside_others_that_fill_every_place(world):
    """Each is served within so many steps as there are requests, whoever came before with however many."""
    w = world(num_pages=200, max_num_seqs=4)
    rng = random.Random(1)
    requests = [w.request([rng.randrange(50) for _ in range(4)], n=rng.choice([1, 1, 20])) for _ in range(12)]
    ended, steps = set(), 0
    while w.scheduler.has_work():
        steps += 1
        assert steps < 2000
        for item in w.run().items:
            sequence = item.sequence
            if sequence.status is Status.RUNNING and sequence.num_output_tokens >= 5:
                w.scheduler.finish(sequence)
                ended.add(sequence.request.request_id)
                if len(ended) == 4:
                    assert steps <= 60
    assert len(ended) == len(requests)
    assert w.all_free()
