"""Texts leave the queue in order, within budget, each once; cancelled ones never."""

from hypothesis import given, settings
from hypothesis import strategies as st

from onecard.engines.oneshot.queue import Queued, TokenBudgetQueue
from onecard.engines.runtime.step_budget import TextTime

LENGTHS = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=6), max_size=8)


def texts(*lengths: int) -> list[list[int]]:
    return [[0] * length for length in lengths]


def taken(queue: TokenBudgetQueue) -> list[tuple[Queued, int]]:
    return [(entry.queued, entry.index) for entry in queue.take()]


@given(requests=LENGTHS, budget=st.integers(1, 20), seqs=st.integers(1, 5))
@settings(max_examples=300, deadline=None)
def test_every_step_is_within_budget_and_as_full_as_order_allows(
    requests: list[list[int]], budget: int, seqs: int
) -> None:
    queue = TokenBudgetQueue(budget, seqs)
    tickets = [Queued() for _ in requests]
    for queued, lengths in zip(tickets, requests):
        queue.add(queued, texts(*lengths))
    expected = [(t, i, n) for t, lengths in zip(tickets, requests) for i, n in enumerate(lengths)]
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
        (pairs, [3], None),
        (pairs, [4, 5], [0, 0]),
        (plain, [6], None),
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
