"""Sleep and wake over HTTP: our routes, vLLM's, and what clients, the ledger and `onecard ps` see of it."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_server import Server

pytestmark = pytest.mark.weights

CHAT = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
}
EMBEDDING = {"model": "minilm", "input": ["a cat", "the stock market"]}


@pytest.fixture(scope="module")
def server(repository: Path, demo_paths: dict[str, Path]) -> Iterator[Server]:
    server = Server(repository)
    yield server
    printed = server.stop()
    assert server.process.returncode == 0
    assert "Traceback" not in printed


def ask(server: Server) -> str:
    status, answer = server.post("/v1/chat/completions", CHAT)
    assert status == 200, answer
    return answer["choices"][0]["message"]["content"]


def stream(server: Server) -> list[str]:
    """The lines of a streamed answer."""
    request = urllib.request.Request(
        server.url + "/v1/chat/completions",
        json.dumps({**CHAT, "stream": True}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return [line.decode().strip() for line in response if line.strip()]


def embed(server: Server) -> list[list[float]]:
    status, answer = server.post("/v1/embeddings", EMBEDDING)
    assert status == 200, answer
    return [row["embedding"] for row in answer["data"]]


def card(server: Server) -> dict[str, Any]:
    (card,) = json.loads(server.get("/admin/pool"))["cards"]
    return card


def row(server: Server, name: str) -> dict[str, Any]:
    return next(model for model in card(server)["models"] if model["name"] == name)


def is_sleeping(server: Server, query: str = "") -> bool:
    return json.loads(server.get(f"/is_sleeping{query}"))["is_sleeping"]


def ps(server: Server, *options: str) -> str:
    command = [sys.executable, "-m", "onecard", "ps", "--url", server.url, *options]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def states(server: Server) -> dict[str, str]:
    return {model["name"]: model["state"] for model in json.loads(ps(server, "--json"))["models"]}


def test_a_sleeping_models_pages_are_free_and_a_stream_says_what_it_waits_for(server: Server):
    before = ask(server)
    assert "Paris" in before
    awake = card(server)
    assert server.post("/models/smollm2/sleep?level=1") == (
        200,
        {"model": "smollm2", "status": "sleeping", "level": 1},
    )
    asleep, model = card(server), row(server, "smollm2")
    assert model["state"] == "asleep"
    assert model["owned_pages"] == 0
    assert model["host_bytes"] > 0
    assert asleep["free_pages"] >= awake["free_pages"] + model["home_pages"] > awake["free_pages"]
    assert is_sleeping(server, "?model=default")
    assert is_sleeping(server)
    assert not is_sleeping(server, "?model=minilm")
    assert states(server) == {"smollm2": "asleep", "minilm": "ready"}
    assert "asleep" in ps(server)
    comment, *frames = stream(server)
    assert comment == ": smollm2 is waking up"
    assert frames[-1] == "data: [DONE]"
    deltas = [json.loads(frame[6:])["choices"][0]["delta"] for frame in frames[:-1]]
    assert "".join(delta.get("content", "") for delta in deltas) == before
    assert not is_sleeping(server)
    assert stream(server)[0].startswith("data:")


def test_load_and_unload(server: Server):
    before = ask(server)
    assert server.post("/models/default/unload")[1] == {"model": "smollm2", "status": "sleeping", "level": 2}
    assert states(server)["smollm2"] == "unloaded"
    assert row(server, "smollm2")["host_bytes"] == 0
    assert server.post("/models/default/load") == (200, {"model": "smollm2", "status": "awake"})
    assert states(server)["smollm2"] == "ready"
    assert ask(server) == before


def test_a_sleeping_embedding_model_wakes_for_a_request(server: Server):
    before = embed(server)
    assert server.post("/models/minilm/sleep", {"level": 2})[1]["level"] == 2
    assert states(server) == {"smollm2": "ready", "minilm": "unloaded"}
    assert embed(server) == before
    assert states(server)["minilm"] == "ready"


def test_vllms_routes(server: Server):
    assert server.post("/sleep?model=minilm&level=1") == (200, {"status": "sleeping", "level": 1})
    assert states(server) == {"smollm2": "ready", "minilm": "asleep"}
    assert server.post("/wake_up?model=minilm&tags=weights") == (
        200,
        {"status": "awake", "tags": ["weights"]},
    )
    assert not is_sleeping(server)
    assert server.post("/sleep")[0] == 200
    assert states(server) == {"smollm2": "asleep", "minilm": "asleep"}
    pool = card(server)
    assert pool["free_pages"] == pool["num_pages"]
    assert server.post("/sleep?level=2")[0] == 200
    assert states(server) == {"smollm2": "unloaded", "minilm": "unloaded"}
    assert server.post("/wake_up") == (200, {"status": "awake", "tags": None})
    assert states(server) == {"smollm2": "ready", "minilm": "ready"}


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/models/nobody/sleep", 404, "does not exist"),
        ("/wake_up?model=nobody", 404, "does not exist"),
        ("/models/smollm2/sleep?level=3", 400, "level"),
        ("/sleep?model=smollm2&mode=abort", 400, "mode"),
    ],
)
def test_nonsense_changes_nothing(server: Server, path: str, status: int, said: str):
    code, answer = server.post(path)
    assert code == status
    assert said in answer["error"]["message"]
    assert states(server) == {"smollm2": "ready", "minilm": "ready"}
