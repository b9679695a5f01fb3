"""The table of what kernels take is read from machine code that was compiled for the purpose."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_a_kernels_resources_are_read_without_a_card() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "benchmarks/kernel_resources.py", "--only", "rms_norm", "--json"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert [row["kernel"] for row in rows] == ["rms_norm.kernel"] * 2
    for row in rows:
        assert (row["threads"], row["stack"], row["spills"]) == (256, 0, 0)
        assert 16 <= row["registers"] <= 255
        assert row["instructions"] > 50
        assert row["products"] == row["copies"] == 0
