"""From the first answer to the end of the process: `onecard serve` around a node that is quickly made, and
may misbehave. What real models do there, tests/e2e and test_serve.py see."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SERVE = """
import asyncio, sys, threading, time, types
from onecard.engines.api import ModelInfo, NodeStatus, ReloadReport

class Node:
    def models(self): return [ModelInfo("m", "llm", "/m", 0, 64, frozenset({"generate"}))]
    def engine(self, name): raise NotImplementedError
    def status(self): return NodeStatus("ready", (), ())
    def begin_drain(self): pass
    async def drained(self): pass
    async def stop(self):
        if BEHAVIOUR == "a step never ends":
            await asyncio.to_thread(time.sleep, 60)
    async def sleep(self, name, level=1): return level
    async def wake(self, name): await asyncio.sleep(60)
    def is_sleeping(self, name): return False
    def ledger(self): return []
    async def apply(self, registry, paths, on_taken): return ReloadReport()

def plan_node(registry, paths):
    if BEHAVIOUR == "headers are read for ever":
        time.sleep(60)
    if BEHAVIOUR == "headers are broken":
        time.sleep(1)
        raise ValueError("no header at all")
    return types.SimpleNamespace(plans=[])

async def start_planned(planned, stats, progress, on_compile):
    progress("m", 30, 100)
    if BEHAVIOUR == "weights load for ever":
        await asyncio.sleep(60)
    if BEHAVIOUR == "a tokenizer works on":
        threading.Thread(target=time.sleep, args=(60,)).start()
    return Node()

BEHAVIOUR = sys.argv.pop(1)
fake = types.ModuleType("onecard.engines.node.factory")
fake.plan_node, fake.start_planned = plan_node, start_planned
sys.modules[fake.__name__] = fake
from onecard.gateway.cli import main
sys.exit(main())
"""
ENDS_WITHIN = 2.0 + 3.0
"""What is promised, and what a busy machine may add."""


class Served:
    def __init__(self, folder: Path, behaviour: str) -> None:
        self.registry, self._log = folder / "registry.yaml", folder / "log"
        (folder / "weights").mkdir()
        self.write(f"[{{name: m, source: {folder / 'weights'}}}]")
        command = [sys.executable, "-c", SERVE, behaviour, "serve", str(self.registry), "--no-watch"]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, stderr=log, env=os.environ | {"COLUMNS": "100"})
        self.url = self.wait_for(r"listening on (\S+),")

    def write(self, models: str) -> None:
        self.registry.write_text(f"server: {{port: 0, drain_timeout: 0.3}}\nmodels: {models}\n")

    def said(self) -> str:
        return self._log.read_text()

    def wait_for(self, pattern: str) -> str:
        deadline = time.monotonic() + 60
        while not (found := re.search(pattern, self.said())):
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)
        return found[1]

    def ask(self, path: str, method: str = "GET") -> tuple[int, Any]:
        try:
            request = urllib.request.Request(self.url + path, method=method)
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def order(self, path: str) -> None:
        """Given, and not waited for."""
        subprocess.Popen(["curl", "-s", "-X", "POST", self.url + path], stdout=subprocess.DEVNULL)

    def end(self) -> tuple[int, float]:
        """The status, and the seconds it took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60), time.monotonic() - began


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[str], Served]]:
    started: list[Served] = []

    def start(behaviour: str) -> Served:
        started.append(Served(tmp_path, behaviour))
        return started[0]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


@pytest.mark.parametrize(
    ("behaviour", "stage", "progress"),
    [("headers are read for ever", "reading", None), ("weights load for ever", "loading", 0.3)],
)
def test_the_port_answers_meanwhile_and_a_signal_ends_it_at_once(
    serve: Callable[[str], Served], behaviour: str, stage: str, progress: float | None
) -> None:
    served = serve(behaviour)
    loading = {"status": "starting", "models": [{"model": "m", "stage": stage, "progress": progress}]}
    deadline = time.monotonic() + 30
    while (answer := served.ask("/health/ready")) != (503, loading):
        assert answer[0] == 503
        assert time.monotonic() < deadline, answer
    assert served.ask("/health/live") == (200, {"status": "starting"})
    with urllib.request.urlopen(served.url + "/metrics", timeout=30) as page:
        assert 'onecard_model_state{model_name="m",state="loading"} 1.0' in page.read().decode()
    status, refused = served.ask("/v1/models")
    assert (status, refused["error"]["type"]) == (503, "ServiceUnavailableError")
    status, seconds = served.end()
    assert status == 128 + signal.SIGTERM
    assert seconds < ENDS_WITHIN


def test_a_load_that_fails_ends_the_process_with_a_sentence(serve: Callable[[str], Served]) -> None:
    served = serve("headers are broken")
    assert served.ask("/health/live")[0] == 200
    assert served.process.wait(60) == 1
    assert "onecard serve: can't plan: ValueError: no header at all (set ONECARD_DEBUG=1" in served.said()
    assert "Traceback" not in served.said()


def test_it_serves_and_ends_in_good_order(serve: Callable[[str], Served]) -> None:
    served = serve("well")
    served.wait_for(r"(ready on) ")
    assert served.ask("/health/ready") == (200, {"status": "ready"})
    status, seconds = served.end()
    assert (status, "INFO" in served.said().splitlines()[-1], "stopped" in served.said()) == (0, True, True)
    assert seconds < ENDS_WITHIN


@pytest.mark.parametrize(
    ("behaviour", "at"),
    [
        ("a step never ends", "stopping the models' steps"),
        ("a tokenizer works on", "waiting for its threads"),
    ],
)
def test_what_never_ends_does_not_hold_up_the_end(
    serve: Callable[[str], Served], behaviour: str, at: str
) -> None:
    served = serve(behaviour)
    served.wait_for(r"(ready on) ")
    status, seconds = served.end()
    assert status == 124
    assert f"still {at}" in served.said()
    assert seconds < ENDS_WITHIN


@pytest.mark.parametrize("order", ["/-/reload", "/models/m/wake_up"])
def test_nor_does_an_order_that_is_being_carried_out(
    serve: Callable[[str], Served], tmp_path: Path, order: str
) -> None:
    served = serve("well")
    served.wait_for(r"(ready on) ")
    with (tmp_path / "huge.gguf").open("wb") as huge:  # a hole: it takes no place, and hours to hash
        huge.truncate(1 << 42)
    served.write(f"[{{name: m, source: {tmp_path / 'huge.gguf'}, sha256: '{'0a' * 32}'}}]")
    served.order(order)
    time.sleep(0.5)
    status, seconds = served.end()
    assert status == 124
    assert "still carrying out an operator's order" in served.said()
    assert seconds < 0.3 + ENDS_WITHIN
