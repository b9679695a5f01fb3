"""Random encoders of true shapes, 512-token texts, bfloat16, beside sentence-transformers on the same card.

tokens/s of whole requests through `Embedder.embed`, given token ids and given text; sentence-transformers
(where it can be imported) given the same text, and transformers' bare forward pass over full batches without
padding, pooled. `share` is the operations of the layers' products and of attention over the card's bfloat16
rate. Vectors are compared with transformers' in float32.
"""

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness.gpu import card_facts, device_of, matmul_rate, parse_arguments
from harness.random_models import CONFIGS, random_model
from harness.report import Report
from workers.onecard_node import run_with_loop

from onecard.engines.api import Embedder, EmbedRequest
from onecard.registry.spec import MemoryAmount

BATCH = 64
Texts = list[list[int]]


def main() -> None:
    args = parse_arguments(__doc__, models="minilm,bge-m3", texts=1024, rounds=2)
    device = device_of(args)
    length = 24 if args.cpu else 512
    if args.cpu:
        args.models, args.texts, args.rounds = "tiny-bert", 8, 1
    dtype = torch.float32 if args.cpu else torch.bfloat16
    rate = matmul_rate(device, dtype)
    report = Report("gpu_encoder", {**card_facts(device), "matmul_tflop_s": round(rate / 1e12, 1)})
    for name in args.models.split(","):
        rng = random.Random(0)
        vocab = CONFIGS[name]["vocab_size"]
        texts = [[rng.randrange(10, vocab) for _ in range(length)] for _ in range(args.texts)]
        with random_model(name, dtype, device.type) as folder:
            (folder / "sentence_bert_config.json").write_text(f'{{"max_seq_length": {length}}}')
            first = reference_vectors(folder, texts[:8], device)
            for engine in (Onecard, OnecardText, SentenceTransformers, Transformers):
                try:
                    row = measure(engine(folder, device, dtype), texts, args.rounds, first)
                except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
                    row = {"error": f"{type(error).__name__}: {error}"}
                if "tokens_s" in row:
                    row["share"] = round(row["tokens_s"] * flops_per_token(name, length) / rate, 3)
                report.add({"model": name, "engine": engine.label, "tokens_a_text": length, **row})
                if not args.cpu:
                    torch.cuda.empty_cache()
    report.write(args.json_out)


def flops_per_token(name: str, length: int) -> float:
    raw = CONFIGS[name]
    hidden, layers = raw["hidden_size"], raw["num_hidden_layers"]
    return 2.0 * layers * (4 * hidden**2 + 2 * hidden * raw["intermediate_size"] + 2 * length * hidden)


def measure(engine: Any, texts: Texts, rounds: int, first: np.ndarray) -> dict[str, Any]:
    """The best of `rounds` after a warm-up; the engine is gone afterwards."""
    try:
        got = engine.embed(texts[:8])
        engine.embed(texts[: max(8, len(texts) // 4)])
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            engine.embed(texts)
            times.append(time.perf_counter() - started)
    finally:
        engine.close()
    tokens = sum(map(len, texts))
    return {
        "texts": len(texts),
        "texts_s": round(len(texts) / min(times), 1),
        "tokens_s": round(tokens / min(times)),
        "seconds": [round(t, 3) for t in times],
        "least_cosine": round(float(cosines(got, first).min()), 5),
    }


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


@torch.inference_mode()
def reference_vectors(folder: Path, texts: Texts, device: torch.device) -> np.ndarray:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    return model(torch.tensor(texts, device=device)).last_hidden_state.mean(1).cpu().numpy()


class Onecard:
    """Token ids through the engine's own API, all texts in one request."""

    label = "onecard, token ids"

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype):
        budget = MemoryAmount(nbytes=(1 << 30) if device.type == "cpu" else 16 << 30)
        tokens = 256 if device.type == "cpu" else 32768
        self._loop, self._node = run_with_loop(
            folder,
            "embedding",
            str(dtype)[6:],
            memory=budget,
            max_num_batched_tokens=tokens,
            max_num_seqs=256,
        )

    def embed(self, texts: Texts) -> np.ndarray:
        engine: Embedder = self._node.engine("model")  # type: ignore[assignment]
        request = EmbedRequest("r", self._inputs(texts), add_special_tokens=False)
        return self._loop.run_until_complete(engine.embed(request)).vectors

    def _inputs(self, texts: Texts) -> tuple[str | tuple[int, ...], ...]:
        return tuple(map(tuple, texts))

    def close(self) -> None:
        self._loop.run_until_complete(self._node.stop())
        self._loop.close()
        asyncio.set_event_loop(None)


class OnecardText(Onecard):
    """Tokenising included."""

    label = "onecard, text"

    def _inputs(self, texts: Texts) -> tuple[str | tuple[int, ...], ...]:
        return tuple(as_words(texts))


def as_words(texts: Texts) -> list[str]:
    return [" ".join(f"t{token}" for token in text) for text in texts]


class SentenceTransformers:
    label = "sentence-transformers, text"

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype):
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(str(folder), device=str(device), model_kwargs={"dtype": dtype})

    def embed(self, texts: Texts) -> np.ndarray:
        vectors = self._model.encode(as_words(texts), batch_size=BATCH, convert_to_tensor=True)
        return vectors.float().cpu().numpy()

    def close(self) -> None:
        del self._model


class Transformers:
    label = "transformers, token ids"

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype):
        from transformers import AutoModel

        model = AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
        self._model, self._device = model.eval().to(device), device

    @torch.inference_mode()
    def embed(self, texts: Texts) -> np.ndarray:
        batches = [torch.tensor(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)]
        vectors = [self._model(ids.to(self._device)).last_hidden_state.float().mean(1) for ids in batches]
        return torch.cat(vectors).cpu().numpy()

    def close(self) -> None:
        del self._model


if __name__ == "__main__":
    main()
