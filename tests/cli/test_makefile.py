"""`make` explains itself, and refuses a Python that is too old before it makes anything."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make on this machine")


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, check=False)


def test_help_explains_every_target(repository: Path) -> None:
    declared = re.search(r"^\.PHONY: (.*)$", (repository / "Makefile").read_text(), re.M)
    assert declared
    printed = make(repository).stdout
    assert printed == make(repository, "help").stdout
    for target in (*declared[1].split(), "bench-NAME"):
        assert re.search(rf"^  {target} +\S", printed, re.M), f"`make help` doesn't explain {target}"


@pytest.fixture
def clone(tmp_path: Path, repository: Path) -> Path:
    """Only what make looks at."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(repository / name, tmp_path)
    return tmp_path


def test_an_old_python_is_refused(clone: Path) -> None:
    old = clone / "python3.8"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.1\nexit 1\n')
    old.chmod(0o755)
    ran = make(clone, "demo", f"PYTHON={old}")
    assert ran.returncode != 0
    assert "onecard needs Python 3.11 or newer" in ran.stderr
    assert f"{old} is Python 3.8.1" in ran.stderr
    assert not (clone / ".venv").exists()


def test_no_python_at_all_is_refused(clone: Path) -> None:
    ran = make(clone, "demo", "PYTHON=python-of-nobody")
    assert ran.returncode != 0
    assert "onecard needs Python 3.11 or newer" in ran.stderr


def test_a_second_run_installs_nothing(clone: Path) -> None:
    (clone / ".venv").mkdir()
    for stamp in (".made", ".torch", ".onecard", ".dev"):
        (clone / ".venv" / stamp).touch()
    planned = make(clone, "--dry-run", "demo", "PORT=9001", "HOST=0.0.0.0").stdout
    assert "pip" not in planned
    assert "onecard serve configs/demo.yaml --host 0.0.0.0 --port 9001" in planned
    (clone / "pyproject.toml").touch()
    assert "pip" in make(clone, "--dry-run", "demo").stdout, "new dependencies are installed"


def test_torch_comes_first(clone: Path) -> None:
    planned = make(clone, "--dry-run", "test").stdout
    installs = [line for line in planned.splitlines() if "-m pip" in line]
    assert "torch" in installs[0]
    assert len(installs) == 3
    assert "[dev]" in installs[2]


@pytest.fixture
def stubbed(clone: Path) -> Path:
    """A clone whose environment has a python that says what it is asked; the index answers if `answers` is
    there, pip fails if `broken` is."""
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / ".made").touch()
    python = clone / ".venv" / "bin" / "python"
    python.write_text(
        '#!/bin/sh\nif [ "$1" = -c ]; then test -e answers; else echo "$@"; ! test -e broken; fi\n'
    )
    python.chmod(0o755)
    return clone


def install_torch(folder: Path) -> subprocess.CompletedProcess[str]:
    return make(folder, ".venv/.torch", "CARD=", "TORCH_CPU_INDEX=https://index.example/cpu")


def test_an_index_that_does_not_answer_is_told_and_left_out(stubbed: Path) -> None:
    ran = install_torch(stubbed)
    assert ran.returncode == 0
    assert "https://index.example/cpu does not answer from here" in ran.stdout
    assert "--extra-index-url" not in ran.stdout


def test_an_index_that_answers_is_used(stubbed: Path) -> None:
    (stubbed / "answers").touch()
    ran = install_torch(stubbed)
    assert "--no-deps --extra-index-url https://index.example/cpu" in ran.stdout
    assert "does not answer" not in ran.stdout
    assert "some 200 MB" in ran.stdout


def test_an_installation_that_fails_says_what_to_do(stubbed: Path) -> None:
    (stubbed / "broken").touch()
    ran = install_torch(stubbed)
    assert ran.returncode != 0
    assert "set PIP_INDEX_URL to one that can be reached" in ran.stderr
    assert not (stubbed / ".venv" / ".torch").exists()
