"""Runs the GPU tests and benchmarks one after another and collects what they say; see gpu_check.sh.

Steps go on after failures. Each has a time limit, and all of them together have one, so the most wanted come
first; the file is written anew after every step, so that a run cut short leaves what it had.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TAIL = 6000
GRACE_SECONDS = 5
TESTS = (
    "tests/kernels",
    "tests/models/test_decoders.py",
    "tests/models/test_xlm_roberta.py",
    "tests/models/test_classifiers.py",
    "tests/oneshot/test_packing.py",
)
DEVICE = """
import json, torch
cuda = torch.cuda.is_available()
print(json.dumps({
    "name": torch.cuda.get_device_name(0) if cuda else "cpu", "cuda": torch.version.cuda,
    "capability": torch.cuda.get_device_capability(0) if cuda else None,
    "memory_bytes": torch.cuda.mem_get_info(0)[1] if cuda else None,
}))
"""
PACKAGES = ("triton", "safetensors", "tokenizers", "accelerate", "pytest")


@dataclass(frozen=True)
class Step:
    """A command, its limit in seconds, and whether it may run beside the one before it (it times nothing)."""

    name: str
    command: list[str]
    limit: float
    beside_previous: bool = False
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    """`rc` 124: it ran past its limit; None: there was no time left for it. `rows`: its JSON lines."""

    name: str
    command: str
    rc: int | None
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    tail: str = ""


def main() -> int:
    args = parse_arguments()
    started = time.monotonic()
    deadline = started + args.minutes * 60
    device = device_facts(args.cpu)
    name = re.sub(r"[^a-z0-9]+", "-", device["name"].lower()).strip("-")
    folder = Path(os.environ.get("OUT") or RESULTS)
    path = folder / f"gpu-{name}-{time.strftime('%Y%m%d-%H%M')}.json"
    report = {**header(), "device": device, "dry_run": args.cpu, "steps": []}
    outcomes: list[Outcome] = []
    for group in groups([step for step in steps(args.cpu) if args.only in step.name]):
        outcomes += run_group(group, deadline)
        report["steps"] = [asdict(outcome) for outcome in outcomes]
        report["seconds"] = round(time.monotonic() - started, 1)
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n")
    print(summary(outcomes))
    print(f"{report['seconds']} s in all; everything is in {path}")
    return 0 if all(outcome.rc == 0 for outcome in outcomes) else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cpu", action="store_true", help="tiny shapes on the CPU: only shows that it works")
    parser.add_argument("--only", default="", help="run the steps whose name contains this")
    parser.add_argument("--minutes", type=float, default=7.8, help="for all steps together (default: 7.8)")
    return parser.parse_args()


def steps(cpu: bool) -> list[Step]:
    """In order of how much their answers are wanted."""
    python, dry = sys.executable, ["--cpu"] if cpu else []
    pytest = [python, "-m", "pytest", "-rf", "--tb=short", "-p", "no:cacheprovider"]
    on_card = [*pytest, "-m", "gpu"]
    parallel = [] if cpu or importlib.util.find_spec("xdist") is None else ["-n", "8"]
    on_cpu = {"GPU_TESTS_DEVICE": "cpu"} if cpu else {}
    narrow = {"OMP_NUM_THREADS": "2"}

    def script(name: str, limit: float, *arguments: str, label: str = "") -> Step:
        command = [python, f"benchmarks/{name}.py", *dry, *arguments]
        return Step(label or name, command, limit)

    kernels = [python, "benchmarks/kernels.py", *(["--only", "silu", "--device", "cpu"] if cpu else [])]
    ops = [*pytest, "tests/kernels/test_ops.py", "-k", "norm"] if cpu else [*on_card, *TESTS, *parallel]
    small, large = ("tiny-qwen3", "tiny-qwen2") if cpu else ("qwen3-0.6b", "qwen2.5-7b")
    return [
        script("gpu_machine", 45),
        Step("tests-kernels-models", ops, 150, environment=narrow),
        Step("tests-engines", [*on_card, "tests/gpu"], 150, beside_previous=True, environment=on_cpu),
        script("gpu_llm", 190, "--models", small, "--peer-models", small, label="gpu_llm-small"),
        script("gpu_encoder", 90),
        script("gpu_pages", 40),
        script("gpu_llm", 130, "--models", large, "--peer-models", "none", label="gpu_llm-7b"),
        Step("kernels", kernels, 75),
    ]


def groups(listed: list[Step]) -> list[list[Step]]:
    """Steps that run together."""
    grouped: list[list[Step]] = []
    for step in listed:
        if step.beside_previous and grouped:
            grouped[-1].append(step)
        else:
            grouped.append([step])
    return grouped


def run_group(group: list[Step], deadline: float) -> list[Outcome]:
    if time.monotonic() > deadline - 5:
        return [Outcome(step.name, " ".join(step.command), None) for step in group]
    started = time.monotonic()
    with contextlib.ExitStack() as files:
        running = []
        for step in group:
            print(f"--- {step.name}: {' '.join(step.command[1:])}", flush=True)
            output = files.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
            process = subprocess.Popen(
                step.command,
                cwd=ROOT,
                env={**os.environ, **step.environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            running.append((step, process, output))
        return [finish(*entry, started, deadline) for entry in running]


def finish(
    step: Step, process: subprocess.Popen[bytes], output: IO[str], started: float, deadline: float
) -> Outcome:
    """Wait for the step, at most until its limit or the deadline; then end it with all its children."""
    try:
        rc = process.wait(max(1.0, min(started + step.limit, deadline) - time.monotonic()))
    except subprocess.TimeoutExpired:
        rc = 124
        os.killpg(process.pid, signal.SIGTERM)  # a script removes its model from memory
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    output.seek(0)
    text = output.read()
    taken = round(time.monotonic() - started, 1)
    print(f"    rc {rc} after {taken} s\n{text[-1500:] if rc else ''}", flush=True)
    return Outcome(step.name, " ".join(step.command), rc, taken, json_rows(text), text[-TAIL:])


def json_rows(text: str) -> list[dict[str, Any]]:
    rows = []
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    return rows


def header() -> dict[str, Any]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from harness.report import machine, package_version

    return {
        "benchmark": "gpu_check",
        "commit": commit(),
        "machine": {**machine(), **{name: package_version(name) for name in PACKAGES}},
    }


def device_facts(cpu: bool) -> dict[str, Any]:
    if cpu:
        return {"name": "cpu"}
    asked = subprocess.run([sys.executable, "-c", DEVICE], capture_output=True, text=True, check=False)
    if asked.returncode:
        sys.exit(f"torch does not work here:\n{asked.stderr[-TAIL:]}")
    facts = json.loads(asked.stdout)
    if facts["name"] == "cpu":
        sys.exit("no CUDA card that this torch can use; --cpu makes a dry run")
    return facts


def commit() -> str:
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except OSError:
        return "unknown"
    return said.stdout.strip() or "unknown"


def summary(outcomes: list[Outcome]) -> str:
    """A table of the steps, then their figures."""
    lines = [f"{'step':24}{'rc':>6}{'seconds':>10}"]
    lines += [
        f"{outcome.name:24}{'-' if outcome.rc is None else outcome.rc:>6}{outcome.seconds:>10}"
        for outcome in outcomes
    ]
    for outcome in outcomes:
        last = outcome.tail.strip().splitlines()[-1:] if "pytest" in outcome.command else []
        figures = [row for row in outcome.rows if "machine" not in row]
        lines += ["", f"{outcome.name}:", *last, *("  " + brief(row) for row in figures)]
    return "\n".join(lines)


def brief(row: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" if not isinstance(value, str) else value for key, value in row.items())


if __name__ == "__main__":
    sys.exit(main())
