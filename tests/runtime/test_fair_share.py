"""The shares themselves: whatever the engines do, each gets its weight's part of the card's seconds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onecard.engines.runtime.fair_share import LEAD_QUANTA, FairShare

QUANTUM = 0.02

weights = st.lists(st.floats(0.5, 8), min_size=2, max_size=5)
randoms = st.integers(0, 1 << 30).map(Random)
priorities = st.lists(st.integers(-2, 2), min_size=5, max_size=5)


@dataclass
class Card:
    """Engines e0, e1, ... with work at all times, and a record of who ran for how long."""

    weights: Sequence[float]
    share: FairShare = field(default_factory=lambda: FairShare(QUANTUM))
    steps: list[tuple[int, float]] = field(default_factory=list)
    now: float = 0.0

    def __post_init__(self) -> None:
        for i, weight in enumerate(self.weights):
            self.share.add(f"e{i}", weight)

    def step(
        self, seconds: Sequence[float], priority: Sequence[int], active: Iterable[int] | None = None
    ) -> int:
        """One step of whoever's turn it is, `seconds[i]` long if it is engine i's."""
        names = range(len(self.weights)) if active is None else active
        turn = self.share.pick({f"e{i}": priority[i] for i in names}, self.now)
        assert turn is not None
        engine = int(turn[0][1:])
        self.share.charge(turn[0], seconds[engine])
        self.now += seconds[engine]
        self.steps.append((engine, seconds[engine]))
        return engine

    def used(self, first: int = 0) -> list[float]:
        used = [0.0] * len(self.weights)
        for engine, seconds in self.steps[first:]:
            used[engine] += seconds
        return used

    def worst_unfairness(self, window: int | None = None) -> float:
        """The farthest, in seconds, that anybody's use was from its part, over all windows of steps."""
        part = [weight / sum(self.weights) for weight in self.weights]
        worst = 0.0
        for engine in range(len(self.weights)):
            lags = list(
                accumulate((s * part[engine] - s * (e == engine) for e, s in self.steps), initial=0.0)
            )
            if window is None:
                worst = max(worst, max(lags) - min(lags))
            else:
                worst = max(worst, *(abs(b - a) for a, b in zip(lags, lags[window:])))
        return worst


def test_no_work_picks_nobody():
    share = FairShare(QUANTUM)
    share.add("a", 1.0)
    assert share.pick({}, 0.0) is None


def test_weights_and_quanta_must_be_positive():
    with pytest.raises(ValueError, match="must be positive"):
        FairShare(QUANTUM).add("a", 0.0)
    with pytest.raises(ValueError, match="must be positive"):
        FairShare(0.0)
    share = FairShare(QUANTUM)
    share.add("a", 1.0)
    with pytest.raises(ValueError, match="must be positive"):
        share.set_weight("a", -1.0)


@settings(deadline=None, max_examples=30)
@given(weights, priorities)
def test_any_100_steps_give_everybody_its_weight_within_5_percent(weights: list[float], priority: list[int]):
    """Steps of a quantum each, any priorities: the lead of urgent engines is paid for once."""
    card = Card(weights)
    for _ in range(400):
        card.step([QUANTUM] * 5, priority)
    assert card.worst_unfairness(window=100) <= 0.05 * 100 * QUANTUM + 1e-9


@settings(deadline=None, max_examples=30)
@given(weights, randoms)
def test_steps_of_unequal_lengths_are_fair_to_two_of_the_longest(weights: list[float], random: Random):
    """However many neighbours there are: one step ahead of its share to one behind, over any time at all."""
    card = Card(weights)
    longest = [random.choice([0.001, 0.5 * QUANTUM, QUANTUM, 4 * QUANTUM]) for _ in weights]
    for _ in range(2000):
        card.step([random.uniform(0.05, 1) * seconds for seconds in longest], [0] * 5)
    assert card.worst_unfairness() <= 2 * max(*longest, QUANTUM) + 1e-6


@settings(deadline=None, max_examples=30)
@given(weights, randoms)
def test_changing_priorities_starve_nobody(weights: list[float], random: Random):
    """Who is most urgent changes at random; nobody gains or loses more than the lead and two steps."""
    card = Card(weights)
    for _ in range(3000):
        card.step([random.uniform(0.1, 1) * QUANTUM for _ in weights], random.choices([-5, 0, 0, 3], k=5))
    assert card.worst_unfairness() <= 2 * (LEAD_QUANTA + 2) * QUANTUM


@settings(deadline=None, max_examples=30)
@given(weights, randoms)
def test_two_that_always_have_work_share_by_weight_while_others_come_and_go(
    weights: list[float], random: Random
):
    card = Card(weights)
    for _ in range(2000):
        others = [i for i in range(2, len(weights)) if random.random() < 0.5]
        card.step([random.uniform(0.1, 1) * QUANTUM for _ in weights], [0] * 5, [0, 1, *others])
    used = card.used()
    apart = abs(used[0] / weights[0] - used[1] / weights[1])
    assert apart <= 2 * QUANTUM / min(weights)


def test_a_more_urgent_engine_runs_first_and_then_waits_its_turn():
    card = Card([1.0, 1.0])
    order = [card.step([QUANTUM] * 2, [0, -1]) for _ in range(40)]
    assert order[:4] == [1, 1, 1, 1]
    assert order[5:].count(1) in (17, 18)
    assert card.used()[1] - card.used()[0] <= 2 * (LEAD_QUANTA + 1) * QUANTUM


def test_an_urgent_newcomer_goes_before_everybody_else():
    card = Card([1.0, 5.0, 1.0])
    for _ in range(57):
        card.step([QUANTUM] * 3, [0, 0, 0], [0, 1])
    assert card.step([QUANTUM] * 3, [0, 0, -1]) == 2


def test_a_newcomer_waits_for_the_running_step_alone():
    card = Card([1.0, 1.0])
    for _ in range(9):
        card.step([QUANTUM] * 2, [0, 0], [0])
    assert card.step([QUANTUM] * 2, [0, 0]) == 1


def test_idling_earns_no_credit():
    card = Card([1.0, 1.0])
    for _ in range(500):
        card.step([QUANTUM] * 2, [0, 0], [0])
    for _ in range(100):
        card.step([QUANTUM] * 2, [0, 0])
    assert abs(card.used(500)[0] - card.used(500)[1]) <= QUANTUM * 1.001


def test_a_long_step_before_everybody_idled_is_held_against_nobody():
    card = Card([1.0, 1.0])
    card.step([5.0, QUANTUM], [0, 0], [0])
    card.now += 3600
    for _ in range(10):
        card.step([QUANTUM] * 2, [0, 0])
    assert card.used(1) == pytest.approx([5 * QUANTUM] * 2)


def test_leaving_after_every_step_pays_no_better_than_staying():
    """An engine whose queue runs empty with each of its steps keeps the debt that it leaves with."""
    card = Card([1.0, 1.0])
    for _ in range(200):
        if card.step([QUANTUM] * 2, [0, 0]) == 1:
            card.step([QUANTUM] * 2, [0, 0], [0])
    assert card.used()[1] <= card.used()[0] + QUANTUM


def test_estimates_charged_at_launch_are_corrected_at_collection():
    share = FairShare(QUANTUM)
    share.add("guessed", 1.0)
    share.add("known", 1.0)
    used = {"guessed": 0.0, "known": 0.0}
    for _ in range(200):
        turn = share.pick({"guessed": 0, "known": 0}, 0.0)
        assert turn is not None
        seconds = 0.5 * QUANTUM if turn[0] == "guessed" else QUANTUM
        used[turn[0]] += seconds
        if turn[0] == "guessed":
            share.charge("guessed", 3 * QUANTUM)
            share.charge("guessed", seconds - 3 * QUANTUM)
        else:
            share.charge("known", seconds)
    assert abs(used["guessed"] - used["known"]) <= 2 * QUANTUM


def test_a_step_that_ends_after_its_engine_was_removed_is_nobodys():
    card = Card([1.0, 1.0])
    card.step([QUANTUM] * 2, [0, 0])
    card.share.remove("e0")
    card.share.charge("e0", QUANTUM)
    assert card.share.pick({"e1": 0}, 0.0) == ("e1", None)


def test_a_changed_weight_holds_from_then_on():
    card = Card([1.0, 1.0])
    for _ in range(101):
        card.step([QUANTUM] * 2, [0, 0])
    card.share.set_weight("e1", 4.0)
    for _ in range(100):
        card.step([QUANTUM] * 2, [0, 0])
    assert card.used(101)[1] == pytest.approx(80 * QUANTUM, abs=2 * QUANTUM)


def test_equals_take_turns():
    card = Card([1.0, 1.0, 1.0])
    order = [card.step([QUANTUM] * 3, [0] * 3) for _ in range(9)]
    assert order == [0, 1, 2] * 3


def test_only_the_engine_that_is_alone_is_not_bounded():
    share = FairShare(QUANTUM, linger_seconds=1.0)
    share.add("flood", 1.0)
    share.add("chat", 1.0)
    assert share.pick({"flood": 0}, 0.0) == ("flood", None)
    turn = share.pick({"flood": 0, "chat": 0}, 10.0)
    assert turn is not None
    assert turn[1] == QUANTUM
    assert share.pick({"flood": 0}, 10.9) == ("flood", QUANTUM), "chat was there a moment ago"
    assert share.pick({"flood": 0}, 11.1) == ("flood", None)
