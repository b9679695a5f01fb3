import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onecard.engines.runtime.fair_share import FairShare


def run(share: FairShare, names: list[str], costs: dict[str, float], steps: int) -> dict[str, float]:
    used = dict.fromkeys(names, 0.0)
    for _ in range(steps):
        name = share.pick(names)
        assert name is not None
        share.charge(name, costs[name])
        used[name] += costs[name]
    return used


def test_no_work_picks_nobody():
    share = FairShare()
    share.add("a", 1.0)
    assert share.pick([]) is None


def test_a_weight_must_be_positive():
    with pytest.raises(ValueError, match="must be positive"):
        FairShare().add("a", 0.0)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0.5, 8), st.floats(0.001, 0.05)), min_size=2, max_size=5),
)
def test_backlogged_engines_get_time_by_weight(engines: list[tuple[float, float]]):
    share, names, costs = FairShare(), [], {}
    for i, (weight, cost) in enumerate(engines):
        share.add(f"e{i}", weight)
        names.append(f"e{i}")
        costs[f"e{i}"] = cost
    used = run(share, names, costs, 4000)
    # Start-time fairness: normalised service differs by at most one step of each engine.
    normal = [used[f"e{i}"] / weight for i, (weight, _) in enumerate(engines)]
    slack = [cost / weight for weight, cost in engines]
    assert max(normal) - min(normal) <= max(slack) * 2 + 1e-6


def test_idling_earns_no_credit():
    share = FairShare()
    share.add("busy", 1.0)
    share.add("idle", 1.0)
    run(share, ["busy"], {"busy": 0.01}, 500)
    used = run(share, ["busy", "idle"], {"busy": 0.01, "idle": 0.01}, 100)
    assert abs(used["busy"] - used["idle"]) <= 0.011


def test_a_late_engine_joins_at_the_clock():
    share = FairShare()
    share.add("a", 1.0)
    run(share, ["a"], {"a": 0.01}, 100)
    share.add("b", 1.0)
    used = run(share, ["a", "b"], {"a": 0.01, "b": 0.01}, 100)
    assert abs(used["a"] - used["b"]) <= 0.011
