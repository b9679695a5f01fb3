"""Texts leave the queue in turns, within budget, each once; cancelled ones never."""

from itertools import zip_longest
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from onecard.engines.oneshot.queue import Queued, TokenBudgetQueue
from onecard.engines.runtime.step_budget import TextTime

LENGTHS = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=6), max_size=8)


def texts(*lengths: int) -> list[list[int]]:
    return [[0] * length for length in lengths]


def taken(queue: TokenBudgetQueue) -> list[tuple[Queued, int]]:
    return [(entry.queued, entry.index) for entry in queue.take()]


def in_turns(requests: list[list[Any]]) -> list[Any]:
    return [text for turn in zip_longest(*requests) for text in turn if text is not None]


@given(requests=LENGTHS, budget=st.integers(1, 20), seqs=st.integers(1, 5))
@settings(max_examples=300, deadline=None)
def test_every_step_is_within_budget_and_as_full_as_turns_allow(
    requests: list[list[int]], budget: int, seqs: int
) -> None:
    queue = TokenBudgetQueue(budget, seqs)
    tickets = [Queued() for _ in requests]
    for queued, lengths in zip(tickets, requests):
        queue.add(queued, texts(*lengths))
    expected = in_turns([[(t, i, n) for i, n in enumerate(lengths)] for t, lengths in zip(tickets, requests)])
    while expected:
        assert len(queue) == len(expected)
        step = queue.take()
        count, tokens = len(step), sum(len(entry.token_ids) for entry in step)
        assert [(e.queued, e.index, len(e.token_ids)) for e in step] == expected[:count]
        assert 1 <= count <= seqs
        assert tokens <= budget or count == 1
        expected = expected[count:]
        if expected and count < seqs:
            assert tokens + expected[0][2] > budget
    assert len(queue) == 0
    assert queue.take() == []


@given(
    requests=LENGTHS,
    cancelled=st.sets(st.integers(0, 7)),
    steps_before=st.integers(0, 3),
    priorities=st.lists(st.integers(-1, 1), min_size=8, max_size=8),
)
@settings(max_examples=300, deadline=None)
def test_cancelled_requests_leave_no_trace(
    requests: list[list[int]], cancelled: set[int], steps_before: int, priorities: list[int]
) -> None:
    queue = TokenBudgetQueue(10, 3)
    tickets = [Queued(priority) for priority, _ in zip(priorities, requests)]
    for queued, lengths in zip(tickets, requests):
        queue.add(queued, texts(*lengths))
    done = [pair for _ in range(steps_before) for pair in taken(queue)]
    gone = [tickets[i] for i in cancelled if i < len(tickets)]
    for queued in [*gone, *gone]:
        queue.cancel(queued)
    left = sum(t.waiting for t in tickets)
    assert len(queue) == left
    rest: list[tuple[Queued, int]] = []
    while len(queue):
        rest += taken(queue)
    assert len(rest) == left
    assert not {id(t) for t, _ in rest} & {id(t) for t in gone}
    assert taken(queue) == []
    per_ticket = {id(t): [i for queued, i in [*done, *rest] if queued is t] for t in tickets}
    for queued, lengths in zip(tickets, requests):
        if queued not in gone:
            assert per_ticket[id(queued)] == list(range(len(lengths)))


def test_smaller_priority_goes_first() -> None:
    queue = TokenBudgetQueue(2, 8)
    late, early = Queued(1), Queued(-1)
    queue.add(late, texts(1, 1))
    queue.add(early, texts(1))
    assert taken(queue) == [(early, 0), (late, 0)]
    assert taken(queue) == [(late, 1)]


def test_a_ticket_cancelled_before_it_is_added_stays_out() -> None:
    queue = TokenBudgetQueue(2, 8)
    queued = Queued(cancelled=True)
    queue.add(queued, texts(1))
    assert len(queue) == 0


def test_a_text_beyond_the_budget_runs_alone() -> None:
    queue = TokenBudgetQueue(4, 8)
    queued = Queued()
    queue.add(queued, texts(1, 9, 1))
    assert [taken(queue) for _ in range(3)] == [[(queued, 0)], [(queued, 1)], [(queued, 2)]]


def test_types_stay_with_their_texts() -> None:
    queue = TokenBudgetQueue(4, 8)
    pairs, plain = Queued(), Queued()
    queue.add(pairs, [[1, 2], [3], [4, 5]], [[0, 1], None, [0, 0]])
    queue.add(plain, [[6]])
    seen = []
    while step := queue.take():
        queue.put_back(step)
        step = queue.take()
        seen += [(entry.queued, entry.token_ids, entry.type_ids) for entry in step]
    assert seen == [
        (pairs, [1, 2], [0, 1]),
        (plain, [6], None),
        (pairs, [3], None),
        (pairs, [4, 5], [0, 0]),
    ]


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=12),
    budgets=st.lists(st.integers(-3, 40), min_size=12, max_size=12),
)
@settings(max_examples=300, deadline=None)
def test_a_step_s_own_budget_lowers_the_queue_s_and_never_starves(
    lengths: list[int], budgets: list[int]
) -> None:
    queue = TokenBudgetQueue(20, 12)
    queue.add(Queued(), texts(*lengths))
    rest = lengths
    for budget in budgets:
        step = [len(entry.token_ids) for entry in queue.take(budget)]
        assert step == rest[: len(step)]
        assert bool(step) == bool(rest)
        assert len(step) <= 1 or sum(step) <= min(budget, 20)
        rest = rest[len(step) :]
        if step and rest:
            assert sum(step) + rest[0] > min(budget, 20)
    assert len(queue) == len(rest) == 0


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=12),
    seconds=st.integers(-5, 300),
    costs=st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 3)),
)
@settings(max_examples=300, deadline=None)
def test_a_step_takes_no_longer_than_it_may_and_never_starves(
    lengths: list[int], seconds: int, costs: tuple[int, int, int]
) -> None:
    time = TextTime(seconds, *costs)
    queue, rest = TokenBudgetQueue(100, 12), lengths
    queue.add(Queued(), texts(*lengths))
    while rest:
        step = [len(entry.token_ids) for entry in queue.take(time=time)]
        assert step == rest[: len(step)]
        spent = sum(costs[0] + costs[1] * n + costs[2] * n * n for n in step)
        assert len(step) == 1 or (spent <= seconds and sum(step) <= 100)
        rest = rest[len(step) :]
        if rest:
            assert spent + time.of(rest[0]) > seconds or sum(step) + rest[0] > 100


def test_a_request_of_thousands_keeps_nobody_waiting_for_its_end() -> None:
    queue = TokenBudgetQueue(4, 4)
    huge, small = Queued(), Queued()
    queue.add(huge, texts(*[1] * 5000))
    assert taken(queue) == [(huge, 0), (huge, 1), (huge, 2), (huge, 3)]
    queue.add(small, texts(1, 1))
    assert taken(queue) == [(huge, 4), (small, 0), (huge, 5), (small, 1)]
    assert taken(queue) == [(huge, i) for i in range(6, 10)]


def test_turns_are_taken_within_a_priority() -> None:
    queue = TokenBudgetQueue(8, 8)
    huge, small, urgent = Queued(), Queued(), Queued(-1)
    queue.add(huge, texts(1, 1, 1))
    queue.add(small, texts(1))
    queue.add(urgent, texts(1, 1))
    assert taken(queue) == [(urgent, 0), (urgent, 1), (huge, 0), (small, 0), (huge, 1), (huge, 2)]


def test_a_cancelled_request_is_let_go_at_once() -> None:
    queue = TokenBudgetQueue(4, 4)
    huge, small = Queued(), Queued()
    queue.add(huge, texts(*[1] * 5000))
    queue.add(small, texts(1))
    queue.cancel(huge)
    assert [list(lane) for lane in queue._lanes.values()] == [[small]]
    queue.cancel(small)
    assert not queue._lanes


@given(
    arrivals=st.lists(
        st.lists(st.tuples(st.integers(1, 6), st.integers(-1, 1)), max_size=2), min_size=1, max_size=40
    ),
    undone=st.sets(st.integers(0, 39)),
    budget=st.integers(1, 4),
)
@settings(max_examples=300, deadline=None)
def test_nobody_starves_order_is_kept_and_what_is_put_back_was_never_taken(
    arrivals: list[list[tuple[int, int]]], undone: set[int], budget: int
) -> None:
    """Before each text of a request come at most one of each other one, and of those that came before."""
    queue, plain = TokenBudgetQueue(budget, budget), TokenBudgetQueue(budget, budget)
    names: dict[int, int] = {}
    alive: list[Queued] = []  # or ids would come twice
    waited: dict[int, int] = {}
    for number, coming in enumerate(arrivals):
        for count, priority in coming:
            twins = Queued(priority), Queued(priority)
            alive += twins
            for one, twin in zip((queue, plain), twins):
                one.add(twin, texts(*[1] * count))
                names[id(twin)] = len(names) // 2
            waited[names[id(twins[0])]] = 0
        if number in undone:
            queue.put_back(queue.take())
        expected_waiting = len(queue)
        step = queue.take()
        assert len(step) == min(budget, expected_waiting), "as full as it can be"
        assert [(names[id(e.queued)], e.index) for e in step] == [
            (names[id(e.queued)], e.index) for e in plain.take()
        ], "an undone step changes nothing"
        for entry in step:
            others = [q for lane in queue._lanes.values() for q in lane if q.priority < entry.queued.priority]
            assert not others, "the urgent first"
            lane = queue._lanes.get(entry.queued.priority, {})
            for queued in lane:
                waited[names[id(queued)]] += queued is not entry.queued
            waited[names[id(entry.queued)]] = 0
            assert all(waited[names[id(q)]] <= len(names) // 2 + budget for q in lane)
