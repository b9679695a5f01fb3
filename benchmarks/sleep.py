"""What sleeping is worth and what waking costs: cache that others gain, seconds beside the copy's own.

Two language models share a card (the same weights twice, in bfloat16, so that they lie in their homes). One
sleeps: how many more tokens of K and V can the other have? It wakes, from its copy in host memory (level 1)
and from its file (level 2): how long, beside copying the same bytes with memcpy alone, to memory that is
there already and to memory that the system has to give first, beside reading the file and loading alone?
"""

import argparse
import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from harness.report import Report, add_common_arguments
from harness.weights import demo_weights

from onecard.engines.api import GenerateRequest, RequestStats, SamplingParams, StepStats
from onecard.engines.models.config import DecoderConfig
from onecard.engines.models.registry import load_config
from onecard.engines.node.factory import plan_registry, start_node
from onecard.engines.weights.loader import load_model
from onecard.registry.spec import CardSpec, EngineSpec, MemoryAmount, ModelSpec, Registry

BUDGET = MemoryAmount(nbytes=1400 << 20)
ENGINE = EngineSpec(dtype="bfloat16", max_model_len=1024, max_num_seqs=16, max_num_batched_tokens=512)


class NoStats:
    def record_step(self, stats: StepStats) -> None: ...

    def record_request(self, stats: RequestStats) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_common_arguments(parser, repeats=5)
    parser.add_argument("--model", type=Path, help="a GGUF file (default: smollm2 of configs/demo.yaml)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    path = demo_weights("smollm2", args.model)
    report = Report("sleep", {"threads": args.threads, "repeats": args.repeats, "model": path.name})
    asyncio.run(measure(report, path, 2 if args.quick else args.repeats))
    report.write(args.json_out)


async def measure(report: Report, path: Path, repeats: int) -> None:
    paths = {"sleeper": path, "other": path}
    models = tuple(ModelSpec(name=name, kind="llm", source=str(path), engine=ENGINE) for name in paths)
    registry = Registry(cards=(CardSpec(device="cpu", memory=BUDGET),), models=models)
    (plan,) = plan_registry(registry, paths)
    node = await start_node(registry, paths, NoStats())
    try:
        before = await answer(node, "sleeper")
        awake = tokens_free(node)
        times: dict[str, list[float]] = {}
        for level in (1, 2):
            for _ in range(repeats):
                times.setdefault(f"sleep {level}", []).append(await timed(node.sleep("sleeper", level)))
                asleep = tokens_free(node)
                times.setdefault(f"wake {level}", []).append(await timed(node.wake("sleeper")))
        same = await answer(node, "sleeper") == before
        weights = next(m.weight_bytes for m in node.status().models if m.name == "sleeper")
    finally:
        await node.stop()
    home = plan.model("sleeper").home_pages * plan.page_bytes
    report.add(
        {
            "what": "tokens of K and V that the other model can have",
            "both awake": awake,
            "one asleep": asleep,
            "ratio": round(asleep / awake, 2),
            "home_mib": round(home / 2**20, 1),
            "same_text_after_waking": same,
        }
    )
    copy, fresh, read, load = copying(weights), copying_to_new(weights), reading(path), loading(path)
    seconds = {what: round(median(values), 3) for what, values in times.items()}
    report.add(
        {
            "what": "seconds",
            **seconds,
            "memcpy of the weights": round(copy, 3),
            "memcpy to new memory": round(fresh, 3),
            "reading the file": round(read, 3),
            "loading alone": round(load, 3),
            "wake 1 / memcpy": round(seconds["wake 1"] / copy, 2),
            "wake 1 / memcpy to new memory": round(seconds["wake 1"] / fresh, 2),
            "wake 2 / loading": round(seconds["wake 2"] / load, 2),
            "wake 1 gb_s": round(weights / seconds["wake 1"] / 1e9, 2),
            "memcpy gb_s": round(weights / copy / 1e9, 2),
            "weight_mib": round(weights / 2**20, 1),
        },
        raw=times,
    )
    print(json.dumps({"ratios": {"tokens": round(asleep / awake, 2)}}))


def tokens_free(node: Any) -> int:
    pool = node.engine("other").core.scheduler.kv.pool
    return int(pool.num_free_blocks() * ENGINE.block_size)


async def answer(node: Any, name: str) -> str:
    sampling = SamplingParams(temperature=0.0, max_tokens=16)
    stream = await node.engine(name).generate(GenerateRequest("r", "The capital of France is", sampling))
    return "".join([chunk.text async for chunk in stream])


async def timed(order: Any) -> float:
    started = time.perf_counter()
    await order
    return time.perf_counter() - started


def best(work: Callable[[], Any]) -> float:
    """Of three: what the machine can do."""

    def once() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return min(once() for _ in range(3))


def copying(nbytes: int) -> float:
    """Seconds in which one thread copies so many bytes to memory that is there already."""
    source, target = np.ones(nbytes, np.uint8), np.zeros(nbytes, np.uint8)
    return best(lambda: np.copyto(target, source))


def copying_to_new(nbytes: int) -> float:
    """The same to memory that was never touched, as a home's is that was given back."""
    source = np.ones(nbytes, np.uint8)
    return best(source.copy)


def reading(path: Path) -> float:
    """Seconds to read the file, from the system's cache if it is there."""
    return best(path.read_bytes)


def loading(path: Path) -> float:
    """Seconds to make the weights from the file, with nothing else running."""
    config = load_config(path, "llm")
    assert isinstance(config, DecoderConfig)
    config = replace(config, max_position_embeddings=1024)
    return best(lambda: load_model(path, config, torch.device("cpu"), "bfloat16"))


if __name__ == "__main__":
    main()
