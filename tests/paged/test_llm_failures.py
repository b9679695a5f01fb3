"""Steps that fail or find no memory, in any order with steps in flight: survivors' answers are right, the
books add up, and nothing is lost or kept.
"""

import random
from collections import deque

import pytest
from paged_bench import Bench, Writer, expected, lone_answer, outcome

from onecard.engines.api import (
    EngineFailedError,
)
from onecard.engines.memory.page_pool import PoolIntegrityError
from onecard.engines.paged.request import Status


@pytest.fixture(params=[False, True], ids=["cpu", "late"])
def late(request: pytest.FixtureRequest) -> bool:
    return request.param


def test_without_failures_answers_are_those_of_the_model(late):
    bench = Bench(late)
    for i in range(6):
        bench.ask([i, 2, 3], 10, n=2)
    bench.run()
    assert [outcome(r) for r in bench.requests] == [expected(r) for r in bench.requests]
    bench.check_all_free()


@pytest.mark.parametrize("max_tokens", [0, 1, 5, 9])
def test_an_answer_leaves_all_that_was_computed_in_the_prefix_cache(late, max_tokens):
    """Also what its last step has filled, and a prompt whose first token is its last."""
    bench = Bench(late)
    first = bench.ask([*range(1, 21)], max_tokens)
    bench.run()
    again = bench.ask([*first.sequences[0].token_ids, 60, 61], 1)
    bench.run()
    assert again.sequences[0].num_cached_tokens == (20 + max(max_tokens, 1) - 1) // 4 * 4
    bench.check_all_free()


@pytest.mark.parametrize("fault", ["memory", "memory after"])
def test_a_step_without_memory_is_halved_until_it_fits_and_nobody_is_lost(late, fault):
    bench = Bench(late)
    bench.runner.fault = lambda schedule: fault if schedule.num_tokens > 3 else None
    for i in range(8):
        bench.ask(list(range(i, i + 20)), 12)
    bench.run()
    assert [outcome(r) for r in bench.requests] == [expected(r) for r in bench.requests]
    assert not bench.failures
    assert bench.runner.tried[:3] == [16, 8, 4]
    bench.check_all_free()
    assert sum(stats.prompt_tokens for stats in bench.stats.steps) == 8 * 20
    assert sum(stats.prefix_queries for stats in bench.stats.steps) == 8 * 20, "counted once"


def test_when_there_is_memory_again_steps_grow_to_their_old_size(late):
    bench = Bench(late)
    bench.runner.fault = lambda schedule: "memory" if schedule.num_tokens > 2 else None
    bench.ask(list(range(30)), 2)
    bench.run()
    bench.runner.fault, bench.runner.tried = lambda _: None, []
    bench.ask(list(range(40, 240)), 2)
    bench.run()
    assert bench.runner.tried[0] < 6
    assert 16 in bench.runner.tried
    assert bench.core._limit.tokens is None


@pytest.mark.parametrize("fault", ["memory", "memory after"])
def test_a_sequence_that_fits_in_no_step_fails_alone(late, fault):
    bench = Bench(late)
    good = bench.ask([1, 2, 3], 6)
    bench.run()
    big = bench.ask([9] * 10, 6)
    bench.runner.fault = lambda schedule: (
        fault if any(i.sequence.request is big for i in schedule.items) else None
    )
    others = [bench.ask([i, 5, 6], 6) for i in range(3)]
    bench.run()
    assert isinstance(outcome(big), EngineFailedError)
    assert bench.runner.tried.count(1) >= 1
    for request in (good, *others):
        assert outcome(request) == expected(request)
    assert len(bench.failures) == 1
    bench.check_all_free()


def test_a_decode_alone_without_memory_gets_a_second_try(late):
    bench = Bench(late)
    request = bench.ask([1], 6)
    faults = deque([None, None, "memory after", None, "memory"])
    bench.runner.fault = lambda _: faults.popleft() if faults else None
    bench.run()
    assert outcome(request) == expected(request)
    assert not bench.failures


def test_after_a_failure_the_next_one_gets_a_second_try_too(late):
    bench = Bench(late)
    faults = deque(["memory"] * 3)
    bench.runner.fault = lambda _: faults.popleft() if faults else None
    lost = bench.ask([1], 6)
    bench.run()
    assert isinstance(outcome(lost), EngineFailedError)
    assert len(faults) == 1
    request = bench.ask([2], 6)
    bench.run()
    assert outcome(request) == expected(request)
    assert len(bench.failures) == 1


def test_an_undone_step_is_not_tried_again_before_the_one_in_flight_is_read():
    """It has sampled already: the card's rows hold tokens that come later than those it started from."""
    bench = Bench(late=True)
    request = bench.ask([1, 2, 3], 9)
    bench.step()
    bench.runner.fault = lambda _: "memory after"
    assert bench.core.launch() is None
    bench.runner.fault = lambda _: None
    assert bench.core.launch() is None
    assert len(bench.runner.tried) == 2
    bench.run()
    assert outcome(request) == expected(request)


def test_a_launch_that_fails_takes_no_answer_from_the_step_in_flight():
    bench = Bench(late=True)
    ends = bench.ask([1, 2, 3], 1)
    goes_on = bench.ask([4, 5, 6], 9)
    bench.step()
    late_one = bench.ask([7, 8, 9], 4)
    bench.runner.fault = lambda _: "step after"
    bench.step()
    bench.runner.fault = lambda _: None
    bench.run()
    assert outcome(ends) == expected(ends)
    assert isinstance(outcome(goes_on), EngineFailedError)
    assert isinstance(outcome(late_one), EngineFailedError)
    bench.check_all_free()


def test_what_was_launched_on_top_of_a_broken_step_fails_with_it():
    """The second request finds its prefix in blocks that the broken step was to fill."""
    bench = Bench(late=True, budget=12)
    prompt = list(range(1, 21))
    first = bench.ask(prompt, 9)
    bench.step()  # 12 tokens
    bench.runner.fault = lambda _: "late"
    bench.step()  # the other 8, then the first 12 are read: 5 blocks are offered
    bench.runner.fault = lambda _: None
    second = bench.ask([*prompt, 50, 51], 3)
    third = bench.ask([60, 61], 3)
    bench.step()
    assert second.sequences[0].num_cached_tokens == 20
    bench.run()
    assert isinstance(outcome(first), EngineFailedError)
    assert isinstance(outcome(second), EngineFailedError)
    fourth = bench.ask([*prompt, 50, 51], 3)
    bench.run()
    assert outcome(fourth) == expected(fourth)
    assert outcome(third) is not None
    bench.check_all_free()


def test_an_answer_that_had_ended_is_not_failed_by_a_step_that_was_ahead_of_it():
    bench = Bench(late=True)
    prompt = next(p for i in range(9999) if len(lone_answer(p := [i, 3, 5, 9], 6)) == 2)
    request = bench.ask(prompt, 6)
    while request.sequences[0].status is not Status.FINISHED:
        bench.runner.fault = lambda _: "late" if request.sequences[0].num_launched_outputs > 2 else None
        bench.step()
    assert bench.in_flight
    bench.run()
    assert len(bench.failures) == 1
    assert outcome(request) == expected(request)


def test_books_that_do_not_add_up_are_no_reason_to_leave_a_client_waiting(late):
    bench = Bench(late)
    requests = [bench.ask([i] * 9, 8, n=2) for i in range(4)]
    for _ in range(3):
        bench.step()
    bench.pool._book.refs.pop(bench.core.scheduler.running[0].block_table[0])
    bench.runner.fault = lambda _: "step"
    with pytest.raises(PoolIntegrityError):
        bench.run()
    bench.deliver(bench.core.give_up(RuntimeError("beyond help")))
    for request in requests:
        assert isinstance(outcome(request), EngineFailedError)
        assert all(sequence.status is Status.FINISHED for sequence in request.sequences)
    while bench.in_flight:
        bench.collect()
    assert bench.pages.free_pages == bench.pages.num_pages
    bench.runner.fault = lambda _: None
    again = bench.ask([1, 2, 3])
    bench.run()
    assert outcome(again) == expected(again), "it can be put back to work"
    bench.check_all_free()


def test_giving_up_fails_everyone_and_takes_late_ones_too(late):
    bench = Bench(late, num_pages=8)
    for i in range(20):
        bench.ask([i] * 5, 9)
    for _ in range(6):
        bench.step()
    bench.deliver(bench.core.give_up(RuntimeError("beyond help")))
    late_one = bench.ask([1])
    bench.deliver(bench.core.give_up(RuntimeError("beyond help")))
    while bench.in_flight:
        bench.collect()
    assert {type(outcome(r)) for r in bench.requests} <= {list, EngineFailedError}
    assert isinstance(outcome(late_one), EngineFailedError)
    assert len(bench.stats.requests) == len(bench.requests) == bench.core.num_finished
    for request in bench.requests:
        assert not bench.core.abort(request)
    bench.check_all_free()


@pytest.mark.parametrize("seed", range(12))
def test_any_order_of_failures_arrivals_and_departures(seed):
    rng = random.Random(seed)
    bench = Bench(late=bool(seed % 4), num_pages=rng.choice([14, 20, 60]), budget=rng.choice([6, 16, 40]))
    kinds = ["memory", "memory after", "step", "step after", "late"]
    bench.runner.fault = lambda _: rng.choice(kinds) if rng.random() < 0.12 else None
    aborted: set[str] = set()
    for _ in range(250):
        if rng.random() < 0.5:
            prompt = [rng.randrange(2) for _ in range(rng.randint(1, 24))]
            bench.ask(prompt, rng.randint(1, 16), n=rng.choice([1, 1, 1, 2]))
        for _ in range(rng.randint(0, 3)):
            bench.step()
        chance = rng.random()
        if chance < 0.04 and bench.requests:
            gone = rng.choice(bench.requests)
            aborted.add(gone.request_id)
            gone.stream.on_abort(lambda gone=gone: bench.deliver(bench.core.abort(gone)))
            gone.stream.abort()
        elif chance < 0.08:
            bench.core.preempt_newest()
        elif chance < 0.085:
            bench.deliver(bench.core.give_up(RuntimeError("for once")))
        bench.check()
    bench.run()
    survivors = 0
    for request in bench.requests:
        if request.request_id in aborted:
            continue
        result = outcome(request)
        assert result is not None, "nobody waits for ever"
        if isinstance(result, list):
            survivors += 1
            assert result == expected(request)
    assert survivors > 10
    assert bench.failures
    bench.check_all_free()
    finished = sum(len(request.sequences) for request in bench.requests)
    assert bench.core.num_finished == len(bench.stats.requests) == finished


def test_a_tokenizer_that_cannot_write_an_answer_fails_its_request_alone(late):
    """A stranger's decoder may panic at a token: that is no failed step, of which three end the engine."""
    bench = Bench(late)

    class Broken(Writer):
        def append(self, token_id, logprob):
            if self.left < 6:
                raise EngineFailedError("The model's tokenizer can't write the text: it panics.")
            return super().append(token_id, logprob)

    for i in range(12):
        request = bench.ask([i, 2, 3], 10, n=2)
        if i % 3 == 0:
            request.sequences[i % 2].output = Broken(i % 2, 10)
    bench.run()
    for i, request in enumerate(bench.requests):
        if i % 3 == 0 and len(lone_answer([i, 2, 3], 10)) > 5:
            assert "it panics" in str(outcome(request))
        else:
            assert outcome(request) == expected(request)
    assert not bench.failures
    bench.check_all_free()
