"""A server whose model has a chat template that never ends: it answers, and ends when it is told to."""

import threading
import time
from pathlib import Path

from live_server import Server
from tiny_llama import write_llama

REGISTRY = """
cards: [{name: card0, device: cpu, memory: 256MiB}]
models:
  - {name: tiny, kind: llm, source: %s, engine: {chat_template: %s}}
"""
ROUNDS = "{% for i in range(99999) %}"


def test_it_answers_and_ends_while_the_template_runs(repository: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "model").mkdir()
    template = write_llama(folder) / "endless.jinja"
    template.write_text(ROUNDS * 3 + "{% endfor %}" * 3)
    (registry := tmp_path / "registry.yaml").write_text(REGISTRY % (folder, template))
    server = Server(repository, registry)
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "w1"}], "max_tokens": 1}
    answers: list[tuple[int, dict]] = []
    asking = threading.Thread(target=lambda: answers.append(server.post("/v1/chat/completions", chat)))
    try:
        asking.start()
        time.sleep(0.5)
        began = time.monotonic()
        assert server.answers("/health/live")
        assert server.post("/v1/completions", {"prompt": [1], "max_tokens": 1})[0] == 200
        assert time.monotonic() - began < 10
    finally:
        server.stop()
    assert time.monotonic() - began < 40
    asking.join(10)
    [(status, body)] = answers
    assert (status, "chat template (default)" in body["error"]["message"]) == (400, True)
