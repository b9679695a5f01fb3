"""`onecard serve configs/demo.yaml` as its own process, used as a user would: real weights, real clients."""

import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from live_server import Server
from openai import OpenAI

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def server(repository: Path, demo_paths: dict[str, Path]) -> Iterator[Server]:
    server = Server(repository)
    yield server
    if server.process.poll() is None:
        server.stop()


@pytest.fixture
def client(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)


def ask(client: OpenAI, text: str, **options):
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="smollm2", messages=messages, temperature=0, **options)


def test_chat_completions_embeddings_and_models(client: OpenAI):
    assert [m.id for m in client.models.list()] == ["smollm2", "default", "minilm"]
    answer = ask(client, "What is the capital of France?")
    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert answer.choices[0].finish_reason == "stop"
    chunks = list(
        ask(client, "What is the capital of France?", stream=True, stream_options={"include_usage": True})
    )
    assert (
        "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        == "The capital of France is Paris."
    )
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 32
    done = client.completions.create(
        model="default", prompt="The capital of France is", max_tokens=4, temperature=0
    )
    assert "Paris" in done.choices[0].text
    vectors = client.embeddings.create(model="minilm", input=["a cat", "a kitten", "the stock market"]).data
    near, far = (sum(a * b for a, b in zip(vectors[0].embedding, v.embedding)) for v in vectors[1:])
    assert near > 0.7 > far


TITLE = """### Task:
Generate a concise, 3-5 word title with an emoji summarizing the chat history.
### Output:
JSON format: { "title": "your concise title here" }
### Chat History:
<chat_history>
USER: What is the capital of France?
ASSISTANT: The capital of France is Paris.
</chat_history>"""
"""As Open WebUI asks after each first answer."""


@pytest.mark.parametrize("question", ["What is the capital of France?", "List five animals.", TITLE])
def test_a_client_that_sets_nothing_gets_an_answer_that_ends(client: OpenAI, question: str):
    messages = [{"role": "user", "content": question}]
    answer = client.chat.completions.create(model="smollm2", messages=messages)
    assert answer.choices[0].finish_reason == "stop", "it repeats itself"
    again = client.chat.completions.create(model="smollm2", messages=messages)
    assert again.choices[0].message == answer.choices[0].message, "the demo's answers don't vary"
    if "France?" in question and question != TITLE:
        assert answer.choices[0].message.content == "The capital of France is Paris."


def test_the_readmes_example_prints_what_the_readme_says(server: Server, repository: Path):
    text = (repository / "README.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(from openai .*?)```\n\n```\n(.*?)```", text, re.DOTALL)
    assert example is not None
    code = example[1].replace("http://127.0.0.1:8000", server.url)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (ran.stdout, ran.stderr) == (example[2], "")


def test_the_readmes_curl_lines_are_answered_as_the_readme_says(server: Server, repository: Path):
    text = (repository / "README.md").read_text(encoding="utf-8")
    asked = re.findall(r"\$ curl http://127\.0\.0\.1:8000(\S+) .*?-d '(.*?)'\n", text, re.DOTALL)
    assert [path for path, _ in asked] == ["/v1/chat/completions", "/v1/embeddings"]
    (_, chat), (_, vectors) = (server.post(path, json.loads(body)) for path, body in asked)
    assert chat["choices"][0]["message"]["content"] == "The capital of France is Paris."
    assert [round(value, 4) for value in vectors["data"][0]["embedding"][:3]] == [0.0617, 0.0415, 0.0088]
    assert "0.061733615,0.04145976,0.008763359" in text


def test_the_clients_own_exceptions(client: OpenAI):
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(openai.BadRequestError, match="maximum context length is 8192 tokens") as error:
        ask(client, "word " * 9000)
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="top_p"):
        ask(client, "hi", top_p=9)


def test_nonsense_is_answered_and_harms_nobody(server: Server, client: OpenAI):
    def post(body: bytes) -> int:
        request = urllib.request.Request(
            server.url + "/v1/chat/completions", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status
        except urllib.error.HTTPError as refused:
            return refused.code if json.loads(refused.read())["error"]["message"] else 0

    assert post(b"{") == 400
    assert post(b"\xff\xfe" * (5 << 20)) == 400
    assert post(b"[1,2]") == 400
    assert post(json.dumps({"model": "smollm2", "messages": "x" * (10 << 20)}).encode()) == 400
    assert post(b"x" * (33 << 20)) == 413
    with socket.create_connection(("127.0.0.1", server.port)) as half:
        half.sendall(b'POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n{"mod')
    assert ask(client, "What is the capital of France?").choices[0].message.content


def test_a_client_that_hangs_up_frees_what_it_held(server: Server, client: OpenAI):
    for stream in (True, False):
        body = {
            "model": "smollm2",
            "messages": [{"role": "user", "content": "Count to 1000."}],
            "stream": stream,
        }
        body |= {"max_tokens": 4000, "ignore_eos": True}
        data = json.dumps(body).encode()
        lines = ["POST /v1/chat/completions HTTP/1.1", "Host: x", "Content-Type: application/json"]
        head = "\r\n".join([*lines, f"Content-Length: {len(data)}", "", ""])
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head.encode() + data)
            wait_for(lambda: server.running() > 0)
        wait_for(lambda: server.running() == 0)


def wait_for(condition, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_every_panel_of_vllms_grafana_board_finds_its_metrics(
    server: Server, client: OpenAI, shared_folder: Path
):
    ask(client, "Tell me about the sea.", max_tokens=20)
    board = json.loads((shared_folder / "contracts" / "vllm-grafana.json").read_text())
    queries = [t["expr"] for panel in board["panels"] for t in panel.get("targets", []) if "expr" in t]
    assert len(queries) > 10
    metrics = server.get("/metrics")
    for query in queries:
        for name in re.findall(r"vllm:\w+", query):
            assert re.search(rf'^{name}(_bucket)?{{.*model_name="smollm2"', metrics, re.MULTILINE), name


def test_chat_and_embeddings_share_the_card_at_once(client: OpenAI):
    with ThreadPoolExecutor(16) as pool:
        chats = [pool.submit(ask, client, f"Name {i} animals.", max_tokens=24) for i in range(8)]
        vectors = [
            pool.submit(client.embeddings.create, model="minilm", input=[f"text {j}" for j in range(i + 1)])
            for i in range(8)
        ]
        assert all(chat.result().usage.completion_tokens for chat in chats)
        assert [len(v.result().data) for v in vectors] == list(range(1, 9))


def test_sigterm_lets_the_running_finish_and_refuses_the_new(server: Server, client: OpenAI):
    def story():
        return list(
            ask(client, "Tell me a long story.", max_tokens=150, stream=True, extra_body={"ignore_eos": True})
        )

    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(story)
        wait_for(lambda: server.running() > 0)
        stopping = pool.submit(server.stop)
        time.sleep(0.3)
        with pytest.raises(openai.APIStatusError) as refused:
            ask(client, "hi")
        assert refused.value.status_code == 503
        assert refused.value.response.headers["Retry-After"]
        chunks = running.result(timeout=60)
        printed = stopping.result(timeout=60)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert server.process.returncode == 0
    assert "Traceback" not in printed
