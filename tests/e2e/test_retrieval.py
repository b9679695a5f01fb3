"""An embedding model and a reranker on one card, over HTTP: what a search with both of them takes."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cross_encoders import write_bert
from live_server import Server

pytestmark = pytest.mark.weights

QUERY = "What is the capital of France?"
DOCUMENTS = ["Bananas are rich in potassium.", "The capital of France is Paris.", "", "a cat on a mat"]
RERANKING = {"model": "judge", "query": QUERY, "documents": DOCUMENTS}


@pytest.fixture(scope="module")
def folder(minilm_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random reranker."""
    folder = tmp_path_factory.mktemp("judge")
    write_bert(folder, minilm_path)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, folder: Path, minilm_path: Path) -> Iterator[Server]:
    registry = folder.parent / "retrieval.yaml"
    registry.write_text(
        "cards: [{name: card0, device: cpu, memory: 512MiB}]\n"
        "models:\n"
        f"  - {{name: vectors, kind: embedding, source: {minilm_path}, memory: 128MiB}}\n"
        f"  - {{name: judge, kind: reranker, source: {folder}, aliases: [rerank-english-v3.0]}}\n"
    )
    server = Server(repository, registry)
    yield server
    printed = server.stop()
    assert server.process.returncode == 0
    assert "Traceback" not in printed


def test_both_kinds_answer_at_once_and_as_they_should(server: Server, folder: Path) -> None:
    from sentence_transformers import CrossEncoder

    reference = CrossEncoder(str(folder), device="cpu")
    expected = [reference.predict([(QUERY, document)])[0] for document in DOCUMENTS]
    with ThreadPoolExecutor(16) as pool:
        embeddings = [pool.submit(server.post, "/v1/embeddings", {"input": [QUERY]}) for _ in range(8)]
        rerankings = [pool.submit(server.post, path, RERANKING) for path in ("/rerank", "/v1/rerank") * 4]
    for status, answer in (embedding.result() for embedding in embeddings):
        assert status == 200
        assert answer["model"] == "vectors"
        assert len(answer["data"][0]["embedding"]) == 384
    for status, answer in (reranking.result() for reranking in rerankings):
        assert status == 200
        assert answer["model"] == "judge"
        found = {result["index"]: result["relevance_score"] for result in answer["results"]}
        np.testing.assert_allclose([found[i] for i in range(4)], expected, atol=1e-5)
        assert list(found) == sorted(found, key=lambda index: -found[index])
        assert all(r["document"]["text"] == DOCUMENTS[r["index"]] for r in answer["results"])


def test_what_is_served_says_so(server: Server) -> None:
    cards = json.loads(server.get("/v1/models"))["data"]
    assert [(card["id"], card["tasks"], card["max_model_len"]) for card in cards] == [
        ("vectors", ["embed"], 256),
        ("judge", ["rerank"], 128),
        ("rerank-english-v3.0", ["rerank"], 128),
    ]
    assert 'vllm:request_success_total{engine="0",finished_reason="stop",model_name="judge"}' in server.get(
        "/metrics"
    )


def test_errors(server: Server) -> None:
    status, answer = server.post("/rerank", {**RERANKING, "model": "vectors"})
    assert (status, answer["error"]["param"]) == (400, "model")
    assert "Models that do: judge" in answer["error"]["message"]
    status, answer = server.post("/rerank", {**RERANKING, "documents": ["long " * 1000]})
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert "the query and document 0 for reranking" in answer["error"]["message"]
    cut = {**RERANKING, "documents": ["long " * 1000], "truncate_prompt_tokens": -1}
    status, answer = server.post("/rerank", cut)
    assert (status, answer["usage"]["prompt_tokens"]) == (200, 128)
    assert server.post("/rerank", {**RERANKING, "documents": ["\ud83d"]})[0] == 400


def test_it_sleeps_and_a_request_wakes_it(server: Server) -> None:
    before = server.post("/rerank", {**RERANKING, "model": "rerank-english-v3.0", "top_n": 1})[1]["results"]
    assert server.post("/models/judge/sleep?level=2")[1] == {
        "model": "judge",
        "status": "sleeping",
        "level": 2,
    }
    assert server.post("/v1/embeddings", {"input": QUERY})[0] == 200
    assert server.post("/rerank", {**RERANKING, "top_n": 1})[1]["results"] == before
