"""Random encoders of true shapes, 512-token texts, bfloat16, beside sentence-transformers on the same card.

tokens/s of whole requests through `Embedder.embed`, given token ids and given text; sentence-transformers
(where it can be imported; SDPA) given the same text, and transformers' bare forward pass over full batches
without padding, pooled. Pooling is the real model's: mean, and for bge-m3 the first token, to unit length.
`share` is the operations of the layers' products and of attention over the card's measured bfloat16 rate.
Vectors are compared with transformers' in float32. `--step-tokens 4096,16384`: steps of these sizes, too.
"""

import asyncio
import json
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from harness.gpu import card_facts, device_of, matmul_rate, parse_arguments
from harness.random_models import CONFIGS, random_model
from harness.report import Report
from workers.onecard_node import SummedStats, run_with_loop

from onecard.engines.api import Embedder, EmbedRequest
from onecard.registry.spec import MemoryAmount

BATCH = 64
FIRST_TOKEN = ("bge-m3", "tiny-xlm-r")
"""Pooled by the first token and normalised, as their modules.json says; the others by mean."""
Texts = list[list[int]]


def main() -> None:
    args = parse_arguments(__doc__, models="minilm,bge-m3", texts=1024, rounds=2, step_tokens="")
    device = device_of(args)
    length = 24 if args.cpu else 512
    if args.cpu:
        args.models, args.texts, args.rounds = "tiny-bert,tiny-xlm-r", 8, 1
    dtype = torch.float32 if args.cpu else torch.bfloat16
    rate = matmul_rate(device, dtype)
    report = Report("gpu_encoder", {**card_facts(device), "matmul_tflop_s": round(rate / 1e12, 1)})
    for name in args.models.split(","):
        rng = random.Random(0)
        vocab = CONFIGS[name]["vocab_size"]
        texts = [[rng.randrange(10, vocab) for _ in range(length)] for _ in range(args.texts)]
        with random_model(name, dtype, device.type) as folder:
            write_modules(folder, length, name in FIRST_TOKEN)
            first = reference_vectors(folder, texts[:8], device, name in FIRST_TOKEN)
            for make in engines(args.step_tokens, name in FIRST_TOKEN):
                row = measure(make, (folder, device, dtype), texts, args.rounds, first)
                if "tokens_s" in row:
                    row["share"] = round(row["tokens_s"] * flops_per_token(name, length) / rate, 3)
                report.add({"model": name, "tokens_a_text": length, **row})
                if not args.cpu:
                    torch.cuda.empty_cache()
    report.write(args.json_out)


def engines(step_tokens: str, first_token: bool) -> list[Callable[..., Any]]:
    sized = [partial(Onecard, step_tokens=int(tokens)) for tokens in step_tokens.split(",") if tokens]
    return [
        Onecard,
        *sized,
        OnecardText,
        SentenceTransformers,
        partial(Transformers, first_token=first_token),
    ]


def write_modules(folder: Path, length: int, first_token: bool) -> None:
    """What makes `folder` a sentence-transformers model of texts of up to `length` tokens."""
    names = ["Transformer", "Pooling", *(["Normalize"] if first_token else [])]
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{name}" if i else "",
            "type": f"sentence_transformers.models.{name}",
        }
        for i, name in enumerate(names)
    ]
    hidden = json.loads((folder / "config.json").read_text())["hidden_size"]
    pooling = {
        "word_embedding_dimension": hidden,
        "pooling_mode_cls_token": first_token,
        "pooling_mode_mean_tokens": not first_token,
    }
    for name in names[1:]:
        (folder / f"{names.index(name)}_{name}").mkdir()
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))


def flops_per_token(name: str, length: int) -> float:
    raw = CONFIGS[name]
    hidden, layers = raw["hidden_size"], raw["num_hidden_layers"]
    return 2.0 * layers * (4 * hidden**2 + 2 * hidden * raw["intermediate_size"] + 2 * length * hidden)


def measure(
    make: Callable[..., Any], arguments: tuple[Any, ...], texts: Texts, rounds: int, first: np.ndarray
) -> dict[str, Any]:
    """The best of `rounds` after a warm-up; the engine is gone afterwards. An engine that can't be had or
    run is a row that says why."""
    engine = None
    try:
        engine = make(*arguments)
        return {"engine": engine.label, **figures(engine, texts, rounds, first)}
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        label = getattr(engine, "label", None) or getattr(make, "func", make).label
        return {"engine": label, "error": f"{type(error).__name__}: {error}"}
    finally:
        if engine is not None:
            engine.close()


def figures(engine: Any, texts: Texts, rounds: int, first: np.ndarray) -> dict[str, Any]:
    got = engine.embed(texts[:8])
    engine.embed(texts[: max(8, len(texts) // 4)])
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        engine.embed(texts)
        times.append(time.perf_counter() - started)
    return {
        "texts": len(texts),
        "texts_s": round(len(texts) / min(times), 1),
        "tokens_s": round(sum(map(len, texts)) / min(times)),
        "seconds": [round(t, 3) for t in times],
        "least_cosine": round(float(cosines(got, first).min()), 5),
        **engine.facts(),
    }


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def pooled(hidden: torch.Tensor, first_token: bool) -> np.ndarray:
    """`[B, T, D]` of texts without padding to `[B, D]` float32 on the host."""
    vectors = F.normalize(hidden[:, 0].float(), dim=-1) if first_token else hidden.float().mean(1)
    return vectors.cpu().numpy()


@torch.inference_mode()
def reference_vectors(folder: Path, texts: Texts, device: torch.device, first_token: bool) -> np.ndarray:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    return pooled(model(torch.tensor(texts, device=device)).last_hidden_state, first_token)


class Onecard:
    """Token ids through the engine's own API, all texts in one request; steps as large as it chooses."""

    label = "onecard, token ids"

    def __init__(
        self, folder: Path, device: torch.device, dtype: torch.dtype, step_tokens: int | None = None
    ):
        if step_tokens is not None:
            self.label = f"{self.label}, steps of {step_tokens}"
        self._sums = SummedStats()
        self._loop, self._node = run_with_loop(
            folder,
            "embedding",
            str(dtype)[6:],
            self._sums,
            memory=MemoryAmount(nbytes=(1 << 30) if device.type == "cpu" else 16 << 30),
            max_num_batched_tokens=step_tokens,
        )

    def embed(self, texts: Texts) -> np.ndarray:
        engine: Embedder = self._node.engine("model")  # type: ignore[assignment]
        self._sums.reset()
        request = EmbedRequest("r", self._inputs(texts), add_special_tokens=False)
        return self._loop.run_until_complete(engine.embed(request)).vectors

    def facts(self) -> dict[str, Any]:
        """Where the last round's time went."""
        sums = self._sums
        return {
            "steps": sums.steps,
            "device_s": round(sums.device_seconds, 4),
            "gap_s": round(sums.gap_seconds, 4),
            "host_s": round(sums.host_seconds, 4),
        }

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

        options = {"dtype": dtype, "attn_implementation": "sdpa"}
        self._model = SentenceTransformer(str(folder), device=str(device), model_kwargs=options)

    def embed(self, texts: Texts) -> np.ndarray:
        vectors = self._model.encode(as_words(texts), batch_size=BATCH, convert_to_tensor=True)
        return vectors.float().cpu().numpy()

    def facts(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        del self._model


class Transformers:
    label = "transformers, token ids"

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, first_token: bool):
        from transformers import AutoModel

        model = AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
        self._model, self._device, self._first_token = model.eval().to(device), device, first_token

    @torch.inference_mode()
    def embed(self, texts: Texts) -> np.ndarray:
        batches = [torch.tensor(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)]
        hidden = (self._model(ids.to(self._device)).last_hidden_state for ids in batches)
        return np.concatenate([pooled(states, self._first_token) for states in hidden])

    def facts(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        del self._model


if __name__ == "__main__":
    main()
