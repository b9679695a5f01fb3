"""Who begins next: by priority, in turns between those who asked, and nobody starves."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onecard.engines.api import SamplingParams
from onecard.engines.paged.request import Request, Sequence
from onecard.engines.paged.stream import TokenStream
from onecard.engines.paged.waiting_line import WaitingLine


@dataclass
class Arrivals:
    """Requests, each later than the one before."""

    line: WaitingLine = field(default_factory=WaitingLine)
    time: float = 0.0

    def request(self, name: str, n: int = 1, group: str = "", priority: int = 0) -> list[Sequence]:
        self.time += 1
        sampling = SamplingParams(n=n)
        request = Request(name, [1], sampling, 1, self.time, TokenStream([1], None, n), priority, group=group)
        request.sequences = [Sequence(request, i, i, [1], None) for i in range(n)]
        for sequence in request.sequences:
            self.line.join(sequence, 1)
        return request.sequences

    def begin(self, count: int = 1) -> list[str]:
        """Whose sequences begin next, in order."""
        begun = []
        for _ in range(min(count, len(self.line))):
            begun.append(self.line[0])
            self.line.begin(self.line[0])
        return [s.request.request_id for s in begun]


def test_requests_of_one_sequence_go_first_come_first_served():
    arrivals = Arrivals()
    for name in "abc":
        arrivals.request(name)
    assert arrivals.begin(2) == ["a", "b"]
    for name in "de":
        arrivals.request(name)
    assert arrivals.begin(9) == ["c", "d", "e"]


def test_a_request_of_thousands_waits_behind_itself():
    arrivals = Arrivals()
    arrivals.request("huge", n=5000)
    assert arrivals.begin(10) == ["huge"] * 10
    arrivals.request("small")
    assert arrivals.begin(3) == ["huge", "small", "huge"]


def test_the_prompts_of_one_http_request_take_their_turns_as_one():
    arrivals = Arrivals()
    for i in range(6):
        arrivals.request(f"huge-{i}", group="huge")
    arrivals.request("small", n=2)
    assert arrivals.begin(8) == ["huge-0", "small", "huge-1", "small", *(f"huge-{i}" for i in range(2, 6))]


def test_turns_are_taken_within_a_priority():
    arrivals = Arrivals()
    arrivals.request("late", n=3, priority=1)
    arrivals.request("huge", n=3)
    arrivals.request("urgent", n=2, priority=-1)
    arrivals.request("small")
    assert arrivals.begin(9) == ["urgent", "urgent", "huge", "small", "huge", "huge", "late", "late", "late"]


def test_a_stream_of_urgent_ones_moves_nobody_s_turn():
    arrivals = Arrivals()
    arrivals.request("huge", n=100)
    arrivals.begin()
    for i in range(50):
        arrivals.request(f"urgent-{i}", priority=-1)
        arrivals.begin()
    arrivals.request("small")
    assert arrivals.begin(2) == ["huge", "small"]


def test_one_that_was_preempted_comes_before_whoever_came_later():
    arrivals = Arrivals()
    first, second, _ = arrivals.request("a", n=3)
    arrivals.begin(2)
    arrivals.request("b")
    arrivals.line.join(second, 1)
    arrivals.line.join(first, 1)
    assert [arrivals.line[i] for i in range(2)] == [first, second]


def test_one_that_is_preempted_when_nobody_waits_comes_before_whoever_comes_then():
    arrivals = Arrivals()
    sequences = arrivals.request("a", n=9)
    arrivals.begin(9)
    arrivals.line.join(sequences[-1], 1)
    arrivals.request("b")
    assert arrivals.begin(2) == ["a", "b"]


class Counted(Sequence):
    """Counts how often its place is asked for."""

    asked = 0

    @property
    def order(self) -> tuple[int, int, float, str, int]:
        Counted.asked += 1
        return super().order


@pytest.mark.parametrize("count", [1000, 16000])
@pytest.mark.parametrize("backwards", [False, True])
def test_an_abort_of_thousands_costs_a_few_comparisons_each(count, backwards):
    line, time = WaitingLine(), 0.0
    sequences = []
    for name in ("a", "b"):
        time += 1
        request = Request(name, [1], SamplingParams(), 1, time, TokenStream([1], None, 1))
        request.sequences = [Counted(request, i, i, [1], None) for i in range(count)]
        for sequence in request.sequences:
            line.join(sequence, 1)
        sequences.append(request.sequences)
    Counted.asked = 0
    for sequence in reversed(sequences[0]) if backwards else sequences[0]:
        line.leave(sequence)
    assert Counted.asked <= count * ((2 * count).bit_length() + 2)
    assert list(line) == sequences[1]
    assert line.blocks == count


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("come"), st.integers(0, 4), st.integers(1, 6), st.integers(-1, 1)),
        st.tuples(st.just("begin"), st.integers(1, 4)),
        st.tuples(st.just("leave"), st.integers(0, 30)),
        st.tuples(st.just("preempt"), st.integers(0, 30)),
    ),
    max_size=60,
)


@given(events=EVENTS)
@settings(max_examples=400, deadline=None)
def test_within_a_group_order_is_kept_and_priorities_hold_whatever_happens(events):
    arrivals, begun = Arrivals(), []
    line = arrivals.line
    for kind, *given_ in events:
        if kind == "come":
            group, n, priority = given_
            arrivals.request(f"{arrivals.time}", n, f"{group} of {priority}", priority)
        elif kind == "begin":
            for _ in range(min(given_[0], len(line))):
                first = line[0]
                line.begin(line[0])
                begun.append(first)
                assert first.request.priority == min([s.request.priority for s in [first, *line]])
        elif kind == "leave" and len(line):
            line.leave(line[given_[0] % len(line)])
        elif kind == "preempt" and begun:
            line.join(begun.pop(given_[0] % len(begun)), 1)
        assert line.blocks == len(line)
        for group in {s.request.group for s in line}:
            mine = [(s.request.arrival_time, s.index) for s in line if s.request.group == group]
            assert mine == sorted(mine), "within a group order is kept"
    while len(line):
        line.begin(line[0])
    assert line.blocks == 0
    arrivals.request("new")
    assert arrivals.begin() == ["new"]


@given(huge=st.integers(2, 40), newcomers=st.lists(st.integers(0, 3), min_size=1, max_size=120))
@settings(max_examples=200, deadline=None)
def test_a_request_gets_on_however_many_come_after_it(huge, newcomers):
    """After each step some come, and one begins: the huge one has its share all the same."""
    arrivals = Arrivals()
    arrivals.request("huge", n=huge)
    since = 0
    present = 0
    for number, coming in enumerate(newcomers):
        for i in range(coming):
            arrivals.request(f"{number}.{i}")
        present = max(present, len({s.request.group for s in arrivals.line}))
        [first] = arrivals.begin() or [None]
        since = 0 if first == "huge" else since + 1
        if first is None or all(s.request.request_id != "huge" for s in arrivals.line):
            return
        assert since <= 2 * present, "a turn of each other one, and of those who came meanwhile"
