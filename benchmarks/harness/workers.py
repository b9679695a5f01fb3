"""Engines as child processes that answer commands, so that none of them disturbs another's threads.

A worker is a script of `benchmarks/workers/`, under an interpreter of its own if need be. It reads one JSON
object a line from its standard input and answers with one on its standard output; between commands it
sleeps.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

WORKERS = Path(__file__).parents[1] / "workers"
STDERR_TAIL = 2000


class WorkerError(Exception):
    """A worker that could not start or failed; the message is its own."""


class Worker:
    """One child process that may compute on `threads` threads.

    `hello` is what it said of itself (versions, settings) once it was ready. Used as a context manager it
    ends with its block.
    """

    def __init__(
        self, name: str, script: str, args: Sequence[str], threads: int, python: str = sys.executable
    ) -> None:
        self.name = name
        stderr, log = tempfile.mkstemp(prefix=f"{Path(script).stem}-", suffix=".log")
        self._log = Path(log)
        self._process = subprocess.Popen(
            [python, str(WORKERS / script), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=_environment(threads),
        )
        os.close(stderr)
        self.hello = self._answer()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """The worker's answer to `command`. Raises WorkerError if it failed."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Let the worker finish; closing its input is the sign."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.unlink()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"{self.name} ended with status {self._process.wait()}:\n{self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        words = self._log.read_text()[-STDERR_TAIL:]
        self._log.unlink()
        return words


def _environment(threads: int) -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
    }
