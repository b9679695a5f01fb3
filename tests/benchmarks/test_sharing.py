"""The simulator: the policies that serve, in simulated time; its workloads and what it reports."""

import importlib
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sim(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The modules of the simulator, imported as the scripts in benchmarks/ import them."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    names = ("card_loop", "cards", "engines", "results", "scenarios", "workloads")
    modules = {name: importlib.import_module(f"simulator.{name}") for name in names}
    return SimpleNamespace(**modules, script=importlib.import_module("sharing_simulated"))


def test_ramps_ask_what_kvcacheds_script_asks(sim: SimpleNamespace):
    arrivals = sim.workloads.intermittent_peaks(("a", "b", "c"), 12, 256, 400)
    assert Counter(a.model for a in arrivals) == {"a": 144 + 3 * 27, "b": 144 + 2 * 27, "c": 144 + 27}
    seconds = Counter(int(a.time) for a in arrivals if a.model == "b")
    assert [seconds[27 + s] for s in range(24)] == [*range(1, 13), *range(11, 0, -1), 1]
    assert all(a.lengths == (256,) and a.output_tokens == 400 for a in arrivals)


def test_a_lone_request_takes_its_steps(sim: SimpleNamespace):
    """300 prompt tokens at 1 ms each in chunks of 200, then 9 tokens more at 5 ms a step."""
    pool = sim.scenarios.PagePool(8, 8192)
    engine = sim.engines.SimulatedLLM(
        "m",
        pool,
        sim.engines.Share(8, 8),
        block_bytes=256,
        step_seconds=sim.cards.linear(0.004, 0.001, 0, 0),
        limits=sim.scenarios.SchedulerLimits(max_num_seqs=4, max_num_batched_tokens=200),
    )
    end = sim.card_loop.simulate([engine], [sim.workloads.Arrival(1.0, "m", (300,), 10)], None)
    (served,) = engine.served
    assert served.first == pytest.approx(0.308)
    assert served.gaps == pytest.approx([0.005] * 9)
    assert served.finished
    assert end == pytest.approx(1.0 + 0.308 + 9 * 0.005)


@pytest.mark.parametrize("quantum", [None, 0.05])
def test_every_request_is_answered_in_full_and_all_pages_come_back(
    sim: SimpleNamespace, quantum: float | None
):
    """Three models on an arena that holds five of their requests: loans, recalls and preemptions galore."""
    names = ("a", "b", "c")
    pool = sim.scenarios.PagePool(24, 4 * 256, clock=iter(range(1 << 40)).__next__)
    seconds = sim.cards.linear(0.004, 0.0005, 0.0002, 0)
    limits = sim.scenarios.SchedulerLimits(max_num_seqs=16, max_num_batched_tokens=256)
    share = sim.engines.Share(4, 24)
    engines = [sim.engines.SimulatedLLM(n, pool, share, 256, seconds, limits, caching=True) for n in names]
    arrivals = sim.workloads.alternating_peaks(names, 8.0, 1.0, 2.0, 0, 120, 130)
    sim.card_loop.simulate(engines, arrivals, quantum)
    assert sum(len(engine.served) for engine in engines) == len(arrivals)
    assert all(len(s.times) == 130 and s.finished for engine in engines for s in engine.served)
    assert sum(engine.preempted_tokens for engine in engines) > 0
    pool.check_integrity()


def test_a_request_that_never_fits_is_no_endless_loop(sim: SimpleNamespace):
    pool = sim.scenarios.PagePool(2, 1024)
    limits = sim.scenarios.SchedulerLimits(max_num_seqs=1, max_num_batched_tokens=64)
    step = sim.cards.linear(0.001, 0, 0, 0)
    engine = sim.engines.SimulatedLLM("m", pool, sim.engines.Share(2, 2), 256, step, limits)
    with pytest.raises(sim.engines.StuckError):
        sim.card_loop.simulate([engine], [sim.workloads.Arrival(0.0, "m", (1000,), 1)], None)


def test_a_step_of_a_card_is_its_bytes_or_its_operations(sim: SimpleNamespace):
    card = sim.cards.Card(80e9, bandwidth=2e12, rate=300e12, overhead=0, bandwidth_share=1, rate_share=1)
    seconds = card.step_seconds(sim.cards.LLAMA_8B)
    assert sim.cards.LLAMA_8B.kv_bytes == 131072
    assert seconds(sim.cards.StepWork(1, 1, 0, 0)) == pytest.approx(7.5e-3, rel=1e-3)
    assert seconds(sim.cards.StepWork(8192, 1, 8192, 0)) == pytest.approx(15e9 * 8192 / 300e12, rel=1e-3)


def test_good_is_what_keeps_the_objective(sim: SimpleNamespace):
    arrival = sim.workloads.Arrival(1.0, "m", (8,), 3)
    objective = sim.results.Objective(first=0.5, gap=0.1)
    served = sim.results.Served
    assert objective.holds(served(arrival, [1.5, 1.65, 1.7], True)), "0.1 s a token on average"
    assert not objective.holds(served(arrival, [1.5, 1.65, 1.75], True))
    assert not objective.holds(served(arrival, [1.51, 1.52, 1.53], True))
    assert not objective.holds(served(arrival, [1.1, 1.2], False))


def test_the_script_reports_both_splits_of_every_workload(
    sim: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr("sys.argv", ["sharing_simulated.py", "--quick", "--cards", "A100-80GB"])
    sim.script.main()
    head, *rows = map(json.loads, capsys.readouterr().out.splitlines())
    assert head["benchmark"] == "sharing_simulated"
    measured = Counter((row["workload"], row["engine"]) for row in rows if "engine" in row)
    for workload in ("ramps to 4/s", "peaks of 1.6/s", "mixed"):
        assert measured[workload, "elastic"] == measured[workload, "static"] == 1
    assert sum("elastic / static" in row for row in rows) == 3
