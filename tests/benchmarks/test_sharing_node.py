"""The real half of the sharing benchmark, on models that take no time."""

import importlib
import json
import math
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def test_both_splits_are_served_predicted_and_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    random_model = importlib.import_module("harness.random_models").random_model
    sharing = importlib.import_module("sharing")
    with (
        random_model("tiny-llama", torch.float32) as llm,
        random_model("tiny-bert", torch.float32) as encoder,
    ):
        options = ["--quick", "--threads", "1", "--llm", str(llm), "--encoder", str(encoder)]
        monkeypatch.setattr("sys.argv", ["sharing.py", *options])
        sharing.main()
    head, *rows = map(json.loads, capsys.readouterr().out.splitlines())
    assert head["benchmark"] == "sharing"
    splits = [row for row in rows if row.get("workload") == "peaks" and "engine" in row]
    assert [row["engine"] for row in splits] == ["elastic", "static"]
    assert all(row["tokens_per_s"] > 0 for row in splits)
    predicted = [row["predicted / measured"] for row in rows if "predicted / measured" in row]
    assert len(predicted) == 2
    assert all(math.isfinite(p["seconds"]) and p["seconds"] > 0 for p in predicted)
    floods = rows[-1]["chat itl_p99_ms"]
    assert floods.keys() == {"lone", "quantum", "no quantum"}
