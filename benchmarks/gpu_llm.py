"""Random models of true shapes on a card: decode of one request, and offline throughput beside transformers.

Decode: 128 prompt tokens, then 256 new ones, one request; `share` is the bytes of the weights that a step
reads, times tokens/s, over the card's copy bandwidth. Throughput: nano-vllm's workload, 256 requests
submitted at once with 100 to 1,024 tokens in and out each, greedy, ends ignored. Every engine is a process of
its own, one after another on the empty card. `gap` is the part of the steps' time in which the card had
nothing to do.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from harness.gpu import card_facts, copy_bandwidth, device_of, parse_arguments
from harness.random_models import CONFIGS, random_model, weight_bytes
from harness.report import Report
from harness.statistics import percentile
from harness.workers import Worker, WorkerError

PROMPT, NEW_TOKENS = 128, 256
SETTINGS = {"memory": 0.85, "max_num_seqs": 256, "max_num_batched_tokens": 16384, "max_model_len": 4096}
Row = dict[str, Any]


def main() -> None:
    args = parse_arguments(
        __doc__, models="qwen3-0.6b,qwen2.5-7b", requests=256, peer_models="qwen3-0.6b", peer_limit=80.0
    )
    device = device_of(args)
    if args.cpu:
        args.requests = 4
    bandwidth = copy_bandwidth(device)
    if not args.cpu:
        torch.cuda.empty_cache()
    report = Report("gpu_llm", {**card_facts(device), "copy_gb_s": round(bandwidth / 1e9, 1)})
    for name in args.models.split(","):
        started = time.perf_counter()
        with random_model(name, torch.bfloat16, device.type) as folder:
            report.add({"model": name, "written_seconds": round(time.perf_counter() - started, 1)})
            run_onecard(report, name, folder, args, bandwidth)
            if name in args.peer_models.split(","):
                run_transformers(report, name, folder, args)
    report.write(args.json_out)


def run_onecard(report: Report, name: str, folder: Path, args: argparse.Namespace, bandwidth: float) -> None:
    settings = {**SETTINGS, "memory": 0.1, "max_model_len": 1024} if args.cpu else SETTINGS
    try:
        started = time.perf_counter()
        arguments = [str(folder), "bfloat16", json.dumps(settings)]
        with Worker("onecard", "llm_onecard.py", arguments, threads=2 if args.cpu else 8) as worker:
            report.add({"model": name, "engine": "onecard", "start_seconds": since(started)})
            warm_up(worker.ask, name, args)
            row = decode(worker.ask, name, args)
            read = weight_bytes(CONFIGS[name], torch.bfloat16)[1]
            share = read * row["decode_tokens_s"] / bandwidth
            report.add({**row, "engine": "onecard", "weight_bytes": read, "share": round(share, 3)})
            report.add({**throughput(worker.ask, name, args), "engine": "onecard"})
    except WorkerError as error:
        report.add({"model": name, "engine": "onecard", "error": str(error)})


def run_transformers(report: Report, name: str, folder: Path, args: argparse.Namespace) -> None:
    try:
        started = time.perf_counter()
        arguments = [str(folder), "2" if args.cpu else "8", "paged|sdpa", "512"]
        script = "llm_transformers_continuous.py"
        engine = "transformers continuous batching"
        with Worker(engine, script, arguments, threads=2 if args.cpu else 8) as worker:
            report.add({"model": name, "engine": engine, "start_seconds": since(started)})
            warm_up(worker.ask, name, args)
            report.add({**decode(worker.ask, name, args), "engine": engine})
            report.add({**throughput(worker.ask, name, args, args.peer_limit), "engine": engine})
    except WorkerError as error:
        report.add({"model": name, "engine": engine, "error": str(error)})


def since(started: float) -> float:
    return round(time.perf_counter() - started, 1)


def random_prompt(rng: random.Random, name: str, length: int) -> list[int]:
    return [rng.randrange(10, CONFIGS[name]["vocab_size"]) for _ in range(length)]


def warm_up(ask: Callable[[Row], Row], name: str, args: argparse.Namespace) -> None:
    """Whatever is compiled at first use: prompts alone, decodes at several batch sizes."""
    rng = random.Random(1)
    for count in (1, 2, 16) if args.cpu else (1, 2, 17, 64, 200):
        prompts = [random_prompt(rng, name, 20 + 7 * (i % 9)) for i in range(count)]
        ask({"prompts": prompts, "new_tokens": 4})


def decode(ask: Callable[[Row], Row], name: str, args: argparse.Namespace) -> Row:
    """One request alone, the better of two."""
    prompt, new = (16, 8) if args.cpu else (PROMPT, NEW_TOKENS)
    rng = random.Random(2)
    best: Row = {"decode_tokens_s": 0.0}
    for _ in range(2):
        answer = ask({"prompts": [random_prompt(rng, name, prompt)], "new_tokens": new})
        times = answer["times"][0]
        rate = (len(times) - 1) / (times[-1] - times[0])
        if rate > best["decode_tokens_s"]:
            best = {
                "model": name,
                "what": "decode of one request",
                "decode_tokens_s": round(rate, 1),
                "ttft_ms": round(times[0] * 1e3, 2),
                "itl_p50_ms": round(percentile(gaps(times), 50) * 1e3, 3),
                "itl_p99_ms": round(percentile(gaps(times), 99) * 1e3, 3),
                **step_times(answer),
            }
    return best


def gaps(times: list[float]) -> list[float]:
    return [b - a for a, b in pairwise(times)]


def step_times(answer: Row) -> Row:
    """Where onecard's steps spent their time; nothing for the others."""
    steps = answer.get("steps")
    if not steps or not steps["steps"]:
        return {}
    count = steps["steps"]
    per_step = {key: round(steps[f"{key}_seconds"] / count * 1e3, 3) for key in ("host", "device", "gap")}
    busy = steps["device_seconds"] + steps["gap_seconds"]
    return {
        "steps": count,
        **{f"{key}_ms_per_step": value for key, value in per_step.items()},
        "gap": round(steps["gap_seconds"] / busy, 3) if busy else 0.0,
        "preemptions": steps["preemptions"],
    }


def throughput(
    ask: Callable[[Row], Row], name: str, args: argparse.Namespace, limit: float | None = None
) -> Row:
    rng = random.Random(0)
    least, most = (10, 40) if args.cpu else (100, 1024)
    prompts = [random_prompt(rng, name, rng.randint(least, most)) for _ in range(args.requests)]
    new_tokens = [rng.randint(least, most) for _ in range(args.requests)]
    command: Row = {"prompts": prompts, "new_tokens": new_tokens}
    answer = ask(command if limit is None else {**command, "limit": limit})
    finished = [times for times in answer["times"] if times]
    elapsed = max((times[-1] for times in finished), default=float("nan"))
    tokens = sum(map(len, finished))
    return {
        "model": name,
        "what": "offline throughput",
        "requests": args.requests,
        "finished": len(finished),
        "prompt_tokens": sum(map(len, prompts)),
        "output_tokens": tokens,
        "seconds": round(elapsed, 2),
        "output_tokens_s": round(tokens / elapsed, 1),
        "ttft_p50_ms": round(percentile([times[0] for times in finished], 50) * 1e3, 1),
        **step_times(answer),
    }


if __name__ == "__main__":
    main()
