"""Serving compiles nothing that its first steps haven't, and a watch would tell if it did."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from onecard.kernels.compile_watch import CompilationWatch, watch_compilations

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def compiled(name: str) -> dict[str, Any]:
    """As Triton calls its hook."""
    return {
        "key": "k",
        "repr": f"{name}[]",
        "fn": SimpleNamespace(module="m", name=name),
        "is_manual_warmup": False,
    }


def test_a_watch_hears_names_until_it_is_closed() -> None:
    runtime, names = SimpleNamespace(jit_post_compile_hook=None), []
    with CompilationWatch(names.append, runtime):
        runtime.jit_post_compile_hook(**compiled("a"))
        runtime.jit_post_compile_hook(**compiled("b"))
    assert names == ["m.a", "m.b"]
    assert runtime.jit_post_compile_hook is None


def test_hooks_below_and_above_stay_in_place() -> None:
    below: list[str] = []
    above: list[str] = []
    names: list[str] = []

    def hook(**compilation: Any) -> str:
        below.append(compilation["repr"])
        return "below"

    runtime = SimpleNamespace(jit_post_compile_hook=hook)
    watch = CompilationWatch(names.append, runtime)
    assert runtime.jit_post_compile_hook(**compiled("a")) == "below"
    other = CompilationWatch(above.append, runtime)
    watch.close()
    runtime.jit_post_compile_hook(**compiled("b"))
    assert (names, above, below) == (["m.a"], ["m.b"], ["a[]", "b[]"])
    other.close()
    runtime.jit_post_compile_hook(**compiled("c"))
    assert (names, above, len(below)) == (["m.a"], ["m.b"], 3)


def test_it_is_tritons_own_hook() -> None:
    from triton import knobs

    before = knobs.runtime.jit_post_compile_hook
    with watch_compilations(print):
        assert knobs.runtime.jit_post_compile_hook is not before
    assert knobs.runtime.jit_post_compile_hook is before


@pytest.mark.skipif(torch.cuda.is_available(), reason="the compiler is played, with a card's driver")
def test_steps_of_other_sizes_compile_nothing() -> None:
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "benchmarks", HERE)))
    environment = {**os.environ, "PYTHONPATH": paths}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(HERE / "serving_sweep.py")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    told = json.loads(run.stdout)
    assert len(told["first"]) >= 14
    assert told["later"] == []
