"""The one command for a machine with a card: its steps exist, failures and time limits don't stop it."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu_check")


@pytest.mark.parametrize("cpu", [False, True])
def test_every_step_has_its_files_and_all_fit_the_time(gpu_check: ModuleType, cpu: bool) -> None:
    for step in gpu_check.steps(cpu):
        files = [word for word in step.command if word.startswith(("benchmarks/", "tests/"))]
        assert files
        assert all((ROOT / file).exists() for file in files)


def test_a_failure_and_a_limit_are_written_down(gpu_check: ModuleType, capsys: pytest.CaptureFixture) -> None:
    def step(name: str, code: str, limit: float) -> object:
        return gpu_check.Step(name, [sys.executable, "-c", code], limit)

    sleeper = "import subprocess, sys; print('{\"begun\": 1}', flush=True); subprocess.run(['sleep', '60'])"
    started = time.monotonic()
    outcomes = gpu_check.run_group(
        [step("fails", "raise SystemExit('why')", 20), step("sleeps", sleeper, 2)], started + 30
    )
    assert time.monotonic() - started < 20
    assert [outcome.rc for outcome in outcomes] == [1, 124]
    assert "why" in outcomes[0].tail
    assert outcomes[1].rows == [{"begun": 1}]
    (late,) = gpu_check.run_group([step("late", "", 20)], time.monotonic())
    assert late.rc is None
    assert "late" in gpu_check.summary([*outcomes, late])


LEFT_OUT = ("gguf", "pydantic", "orjson", "aiohttp", "uvloop", "rich", "prometheus_client", "modelscope")
IMPORTS = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1:]))
import onecard.engines.node.factory, onecard.registry.loader, onecard.registry.sources
import gpu_llm, gpu_encoder, gpu_machine, gpu_pages, kernels
"""


def test_neither_gateway_nor_gguf_packages_are_needed() -> None:
    """A machine with a card that isn't ours has torch and transformers, and little else of ours."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    command = [sys.executable, "-c", IMPORTS, *LEFT_OUT]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=True)


def test_dry_run_leaves_its_file(tmp_path: Path) -> None:
    environment = {**os.environ, "OUT": str(tmp_path), "PYTHON": sys.executable}
    command = ["bash", str(ROOT / "benchmarks" / "gpu_check.sh"), "--cpu", "--only", "gpu_pages"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (file,) = tmp_path.glob("gpu-cpu-*.json")
    report = json.loads(file.read_text())
    assert report["dry_run"]
    assert report["machine"]["torch"] != "-"
    (pages,) = report["steps"]
    assert pages["rc"] == 0
    assert any(row.get("p50_us", 0) > 0 for row in pages["rows"])
