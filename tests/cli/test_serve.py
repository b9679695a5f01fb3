"""`serve`: what it refuses, what it says, how it stops; at the end, the demo's own registry, live."""

import gc
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import types
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import Outcome

from onecard.engines.api import ModelInfo, StepStats, Task
from onecard.gateway.cli import serve
from onecard.gateway.cli.startup import announcement, base_url, bind, curl
from onecard.gateway.metrics.traffic_log import StatsFan, TrafficLog
from onecard.registry.spec import Registry, ServerSpec

Run = Callable[..., Outcome]


# --- failing to start --------------------------------------------------------------------------------


def test_a_port_in_use_is_found_before_anything_is_fetched(onecard: Run, registry_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ran = onecard("serve", str(registry_file), "--port", str(port))
    assert ran.code == 1
    assert ran.err.startswith(f"onecard serve: can't listen on 127.0.0.1:{port} (Address already in use).")
    assert "--port" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_a_host_that_is_none(onecard: Run, registry_file: Path) -> None:
    ran = onecard("serve", str(registry_file), "--host", "no host at all")
    assert ran.code == 1
    assert "'no host at all' is no address to listen on" in ran.err


def test_a_port_that_is_none(onecard: Run, registry_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        onecard("serve", str(registry_file), "--port", "99999")
    assert end.value.code == 2
    assert "'99999' is no port: write a number from 0 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("http://0.0.0.0:9000", "is a URL; write the address alone: --host 0.0.0.0 and --port 9000"),
        ("box:9000", "is an address with a port; write --host box and --port 9000"),
    ],
)
def test_a_host_that_is_more_than_one(
    onecard: Run, registry_file: Path, capsys: pytest.CaptureFixture[str], host: str, said: str
) -> None:
    with pytest.raises(SystemExit) as end:
        onecard("serve", str(registry_file), "--host", host)
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_a_host_in_brackets_is_taken(onecard: Run, registry_file: Path) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        port = other.getsockname()[1]
        ran = onecard("serve", str(registry_file), "--host", "[::1]", "--port", str(port))
    assert "Address already in use" in ran.err


def test_weights_that_are_missing(onecard: Run, tmp_path: Path) -> None:
    path = tmp_path / "registry.yaml"
    path.write_text("server: {port: 0}\nmodels: [{name: a, kind: llm, source: ./nowhere}]")
    ran = onecard("serve", str(path))
    assert ran.code == 1
    assert "nowhere" in ran.err
    assert "Traceback" not in ran.err


def test_weights_that_are_broken(onecard: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(60))
    path = tmp_path / "registry.yaml"
    path.write_text(
        "server: {port: 0}\ncards: [{name: c, memory: 1GiB}]\n"
        "models: [{name: a, kind: llm, source: ./broken.gguf}]"
    )
    ran = onecard("serve", str(path))
    assert ran.code == 1
    assert ran.err.startswith("onecard serve: can't plan: ")
    assert "Traceback" not in ran.err


def test_bound_sockets_refuse_until_they_listen() -> None:
    with bind("127.0.0.1", 0) as listener:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(listener.getsockname(), timeout=2)
        listener.listen()
        socket.create_connection(listener.getsockname(), timeout=2).close()


# --- what it says ------------------------------------------------------------------------------------


def model(name: str, *tasks: Task) -> ModelInfo:
    return ModelInfo(name, "a kind", "/m", 0, 64, frozenset(tasks))


def test_the_line_to_try_asks_the_first_language_model() -> None:
    models = [model("v", "embed"), model("a", "generate"), model("b", "generate")]
    line = curl(ServerSpec(), models, "http://h:1")
    assert line.startswith("curl http://h:1/v1/chat/completions -H 'Content-Type: application/json' -d ")
    assert json.loads(line.split(" -d ")[1].strip("'"))["model"] == "a"
    assert "Authorization" not in line


def test_the_line_to_try_has_names_as_they_are_written() -> None:
    assert '"model": "größe"' in curl(ServerSpec(), [model("größe", "generate")], "http://h:1")


def test_the_line_to_try_without_a_language_model() -> None:
    assert "/v1/embeddings" in curl(ServerSpec(), [model("v", "embed")], "http://h:1")


def test_the_line_to_try_shows_no_key() -> None:
    line = curl(ServerSpec(api_keys=("sesame",)), [model("a", "generate")], "http://h:1")
    assert '"Authorization: Bearer $ONECARD_API_KEY"' in line
    assert "sesame" not in line


def test_addresses_to_reach_it_at() -> None:
    assert base_url("0.0.0.0", 80) == "http://127.0.0.1:80"
    assert base_url("::", 80) == "http://[::1]:80"
    assert base_url("box", 80) == "http://box:80"
    assert "ready on http://127.0.0.1:4711: a, v" in announcement(
        ServerSpec("0.0.0.0"), [model("a"), model("v")], 4711
    )


def test_a_servers_log_goes_by_way_of_the_bars(repository: Path) -> None:
    code = (
        "import logging; from onecard.gateway.cli import main; main(['serve', 'nowhere.yaml']);"
        "print([type(handler).__name__ for handler in logging.getLogger().handlers])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True)
    assert ran.stdout == "['LogHandler']\n"


def test_the_log_line_tells_what_an_interval_did() -> None:
    now = [100.0]
    log = TrafficLog(clock=lambda: now[0])
    fan = StatsFan([log])
    fan.record_step(
        StepStats(
            "chat", 2, 1, 0.25, prompt_tokens=150, generation_tokens=2, prefix_queries=200, prefix_hits=50
        )
    )
    fan.record_step(StepStats("chat", 3, 0, 0.5, generation_tokens=3))
    now[0] += 10
    assert log.flush() == [
        "chat: Avg prompt throughput: 15.0 tokens/s, Avg generation throughput: 0.5 tokens/s, "
        "Running: 3 reqs, Waiting: 0 reqs, KV cache usage: 50.0%, Prefix cache hit rate: 25.0%"
    ]
    now[0] += 10
    fan.record_step(StepStats("words", 1, 0, None, prompt_tokens=400))
    assert log.flush() == ["words: Avg prompt throughput: 40.0 tokens/s, Running: 1 req, Waiting: 0 reqs"]
    now[0] += 10
    assert log.flush() == [], "nothing happened, nothing is said"


# --- stopping ----------------------------------------------------------------------------------------

SIGNALS = """
import asyncio, logging, sys
from onecard.gateway.cli.triggers import StopSignals
logging.basicConfig(level="INFO")
async def main():
    signals = StopSignals(lambda: print("restored", flush=True))
    print("up", flush=True)
    if sys.argv[1] == "serving":
        await signals.wait()
        print("draining", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def start_signals(phase: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", SIGNALS, phase], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def test_the_first_signal_drains_and_the_second_exits_at_once() -> None:
    with start_signals("serving") as process:
        assert process.stdout is not None
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "draining\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM
        assert process.stdout.read() == "restored\n"


def test_a_signal_while_loading_exits_at_once() -> None:
    with start_signals("loading") as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 128 + signal.SIGINT


# --- live --------------------------------------------------------------------------------------------


@contextmanager
def serving(repository: Path, log: Path, *arguments: str) -> Iterator["Live"]:
    with log.open("w") as stderr:
        command = [sys.executable, "-m", "onecard", "serve", *arguments, "--port", "0"]
        process = subprocess.Popen(
            command, cwd=repository, stderr=stderr, env=os.environ | {"COLUMNS": "120"}
        )
    try:
        yield Live(process, log)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def live(
    demo_paths: dict[str, Path], repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator["Live"]:
    with serving(repository, tmp_path_factory.mktemp("serve") / "log", "configs/demo.yaml") as demo:
        yield demo


class Live:
    """A registry, served by a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self._log = process, log
        deadline = time.monotonic() + 120
        while not (ready := re.search(r"ready on (\S+):\s", self.said())):
            assert process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)
        self.url = ready[1]

    def said(self) -> str:
        return self._log.read_text()

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=30) as response:
            return str(response.read().decode())

    def post(self, path: str, body: object) -> tuple[int, dict[str, Any]]:
        """The status and the answer, also of an error."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


@pytest.mark.weights
def test_a_changed_registry_is_served_and_a_bad_one_changes_nothing(
    minilm_path: Path, repository: Path, tmp_path: Path
) -> None:
    file = tmp_path / "registry.yaml"

    def write(name: str, memory: str = "0", more: str = "") -> None:
        file.write_text(
            "cards: [{name: card0, device: cpu, memory: 512MiB}]\nmodels:\n"
            f"  - {{name: minilm, kind: embedding, source: {minilm_path}, "
            f"aliases: [{name}], memory: {memory}}}\n{more}"
        )

    def ask(name: str) -> tuple[int, list[float]]:
        status, answer = live.post("/v1/embeddings", {"model": name, "input": "a cat"})
        return status, answer["data"][0]["embedding"] if status == 200 else []

    write("old")
    with serving(repository, tmp_path / "log", str(file), "--no-watch") as live:
        status, vector = ask("old")
        assert status == 200

        write("new", memory="10MiB")
        status, refused = live.post("/-/reload", {})
        assert status == 400
        assert "its floor is 10MiB: set `memory:` to at least" in refused["error"]["message"]
        assert ask("old") == (200, vector)
        assert ask("new")[0] == 404

        write("new", more=f"  - {{name: twin, kind: embedding, source: {minilm_path}}}\n")
        report = {"added": ["twin"], "removed": [], "changed": ["minilm"], "notes": []}
        assert live.post("/-/reload", {}) == (200, report)
        assert ask("new") == ask("twin") == (200, vector)
        assert ask("old")[0] == 404
        assert 'model_name="twin"' in live.get("/metrics")


@pytest.mark.weights
def test_the_demo_is_served_and_drained(live: Live, onecard: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    said = live.said()
    for wanted in (
        "smollm2: weights",
        "minilm: weights",
        "loading smollm2 (",
        "loading minilm: done in ",
        "try it:",
        "curl ",
    ):
        assert wanted in said
    assert "━" not in said, "bars are for terminals"

    monkeypatch.setattr(sys, "stdin", io.StringIO("Say hello."))
    answered = onecard("chat", "default", "--url", live.url, "--max-tokens", "8", "--temperature", "0")
    assert answered.code == 0
    assert answered.out.strip()

    models = json.loads(onecard("ps", "--url", live.url, "--json").out)["models"]
    assert {m["name"]: (m["state"], m["finished"]) for m in models} == {
        "smollm2": ("ready", 1),
        "minilm": ("ready", 0),
    }
    page = live.get("/metrics")
    assert 'vllm:request_success_total{engine="0",finished_reason="length",model_name="smollm2"} 1.0' in page
    assert re.search(r'onecard_memory_bytes\{card="card0",kind="weights",model_name="minilm"\} [1-9]', page)
    assert re.search(r'vllm:cache_config_info\{.*num_gpu_blocks="[1-9]\d*"\} 1.0', page)

    live.process.send_signal(signal.SIGTERM)
    assert live.process.wait(20) == 0
    assert "stopped" in live.said()


@pytest.mark.weights
def test_what_outlives_the_drain_is_cut_off_with_an_answer(
    smollm2_path: Path, repository: Path, tmp_path: Path
) -> None:
    file = tmp_path / "registry.yaml"
    file.write_text(
        "server: {drain_timeout: 0.5}\ncards: [{name: card0, device: cpu, memory: 2GiB}]\nmodels:\n"
        f"  - {{name: a, kind: llm, source: {smollm2_path}, memory: 0.9}}\n"
    )
    asked = {"model": "a", "prompt": "Once", "max_tokens": 4000, "ignore_eos": True}
    with serving(repository, tmp_path / "log", str(file)) as live, ThreadPoolExecutor() as pool:
        plain = pool.submit(live.post, "/v1/completions", asked)
        request = urllib.request.Request(
            live.url + "/v1/completions",
            json.dumps(asked | {"stream": True}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as stream:
            stream.readline()
            live.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            *_, error, done, _ = stream.read().decode().split("\n\n")
        assert live.process.wait(20) == 0
        assert time.monotonic() - began < 4  # what is promised is 2.5
        assert done == "data: [DONE]"
        assert json.loads(error.removeprefix("data: "))["error"]["type"] == "ServiceUnavailableError"
        status, answer = plain.result()
        assert (status, answer["error"]["type"]) == (503, "ServiceUnavailableError")
        assert "2 requests were still unfinished after 0.5 s" in live.said()


def test_a_server_may_open_as_many_files_as_the_system_lets_it():
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512));"
        "from onecard.gateway.cli.startup import allow_many_files; allow_many_files();"
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["512", "512"]


def test_the_collector_need_not_look_through_what_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch and transformers in it that takes 70 ms of everybody's, and a client's lists begin it."""
    factory = types.ModuleType("onecard.engines.node.factory")
    factory.plan_node = lambda registry, paths: gc.get_freeze_count()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, factory.__name__, factory)
    try:
        assert serve._plan(Registry(), {}) > 10_000
    finally:
        gc.unfreeze()
