"""The interpreter is more patient than the compiler: every kernel must also become a Hopper card's code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="all tests compile for the card that is here")
@pytest.mark.parametrize("width", ["--narrow", "--wide"])
def test_kernels_compile_for_a_card_that_is_not_here(width: str, tmp_path: Path) -> None:
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "benchmarks", HERE)))
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": paths}
    del environment["TRITON_INTERPRET"]
    run = subprocess.run(
        [sys.executable, str(HERE / "hopper.py"), width], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    kernels, operations = (int(word) for word in run.stdout.split() if word.isdigit())
    assert operations == 11
    assert kernels > operations
