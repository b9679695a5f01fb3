"""A language model under 1, 8 and 16 concurrent requests: onecard beside transformers and llama.cpp.

Same weights (the demo's GGUF file; llama.cpp multiplies its 4-bit numbers, all others what they dequantise
to), same prompts of random token ids, same number of threads, greedy, no stop token. Engines live in
processes of their own and take turns in every round, so that a noisy moment hits all of them; a figure is the
median of its rounds. Prints a JSON line for each engine and concurrency, and one with the ratios.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from harness.report import Report, add_common_arguments
from harness.statistics import Metrics, medians, percentile, rounded, spread
from harness.weights import demo_weights
from harness.workers import Worker, WorkerError

TRANSFORMERS = ("transformers generate", "transformers continuous batching")
ONECARD = ("onecard auto", "onecard float32")
VOCABULARY = range(100, 49000)
"""Ordinary tokens of SmolLM2; the first ones are special."""


def main() -> None:
    args = parse_arguments()
    path = demo_weights("smollm2", args.model)
    prompt_tokens, new_tokens = (32, 16) if args.quick else (args.prompt_tokens, args.new_tokens)
    repeats = 1 if args.quick else args.repeats
    settings = {
        "model": path.name,
        "threads": args.threads,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "repeats": repeats,
    }
    report = Report("llm", settings)
    workers = start_workers(args, path)
    try:
        measured = {}
        for concurrency in args.concurrency:
            measured[concurrency] = measure(workers, concurrency, prompt_tokens, new_tokens, repeats)
            add_rows(report, workers, concurrency, measured[concurrency])
        report.add({"ratios over the better of transformers": ratios(measured)})
    finally:
        for worker in workers:
            worker.close()
    report.write(args.json_out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser, repeats=3)
    parser.add_argument("--model", type=Path, help="a GGUF file (default: smollm2 of configs/demo.yaml)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument(
        "--engines", nargs="+", metavar="WORD", help="only engines whose names have one of these words"
    )
    parser.add_argument(
        "--llama-python",
        default=sys.executable,
        metavar="PATH",
        help="the interpreter that has llama-cpp-python (default: this one)",
    )
    return parser.parse_args()


def start_workers(args: argparse.Namespace, path: Path) -> list[Worker]:
    model, threads = str(path), str(args.threads)
    known: list[tuple[str, str, list[str], str]] = [
        ("onecard auto", "llm_onecard.py", [model, "auto"], sys.executable),
        ("onecard float32", "llm_onecard.py", [model, "float32"], sys.executable),
        (TRANSFORMERS[0], "llm_transformers_generate.py", [model, threads], sys.executable),
        (TRANSFORMERS[1], "llm_transformers_continuous.py", [model, threads, "sdpa", "2048"], sys.executable),
        ("llama.cpp Q4_1", "llm_llama_cpp.py", [model, threads], args.llama_python),
    ]
    workers = []
    for name, script, arguments, python in known:
        if args.engines and not any(word in name for word in args.engines):
            continue
        try:
            workers.append(Worker(name, script, arguments, args.threads, python))
        except (WorkerError, OSError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    return workers


def measure(
    workers: Sequence[Worker], concurrency: int, prompt_tokens: int, new_tokens: int, repeats: int
) -> dict[str, list[Metrics]]:
    """Every engine's figures, a round each; each round has prompts that no cache has seen."""
    results: dict[str, list[Metrics]] = {worker.name: [] for worker in workers}
    for worker in workers:
        warm_up = random_prompts(f"warm up {concurrency}", concurrency, prompt_tokens)
        worker.ask({"prompts": warm_up, "new_tokens": min(8, new_tokens)})
    for round_number in range(repeats):
        prompts = random_prompts(f"{concurrency} {round_number}", concurrency, prompt_tokens)
        answers = {w.name: w.ask({"prompts": prompts, "new_tokens": new_tokens}) for w in workers}
        reference = answers.get(TRANSFORMERS[0])
        for name, answer in answers.items():
            figures = figures_of(answer["times"], new_tokens)
            if reference is not None:
                figures["same_tokens"] = agreement(answer["tokens"], reference["tokens"])
            results[name].append(figures)
    return results


def random_prompts(seed: str, count: int, length: int) -> list[list[int]]:
    generator = random.Random(seed)
    return [generator.choices(VOCABULARY, k=length) for _ in range(count)]


def figures_of(times: list[list[float]], new_tokens: int) -> Metrics:
    """`times[request][token]` in seconds since all were submitted.

    Decoding is counted from when the last request has its first token: from then on, nobody prefills.
    """
    assert all(len(row) == new_tokens for row in times), "an engine stopped early"
    all_started, end = max(row[0] for row in times), max(row[-1] for row in times)
    decoded = sum(stamp > all_started for row in times for stamp in row)
    gaps = [later - earlier for row in times for earlier, later in pairwise(row)]
    return {
        "decode_tokens_per_s": decoded / (end - all_started),
        "total_tokens_per_s": len(times) * new_tokens / end,
        "ttft_p50_ms": percentile((row[0] for row in times), 50) * 1e3,
        "itl_p50_ms": percentile(gaps, 50) * 1e3,
        "itl_p99_ms": percentile(gaps, 99) * 1e3,
    }


def agreement(tokens: list[list[int]], reference: list[list[int]]) -> float:
    """The share of tokens before the first one that differs: greedy text that parts once stays apart."""
    same = 0
    for row, expected in zip(tokens, reference, strict=True):
        pairs = zip(row, expected, strict=True)
        same += next((i for i, (a, b) in enumerate(pairs) if a != b), len(row))
    return same / sum(map(len, reference))


def add_rows(
    report: Report, workers: Sequence[Worker], concurrency: int, results: dict[str, list[Metrics]]
) -> None:
    for worker in workers:
        repeats = results[worker.name]
        row: dict[str, Any] = {"engine": worker.name, **worker.hello, "concurrency": concurrency}
        row.update(rounded(medians(repeats)))
        row["decode_spread"] = round(spread([repeat["decode_tokens_per_s"] for repeat in repeats]), 3)
        report.add(row, raw=repeats)


def ratios(measured: dict[int, dict[str, list[Metrics]]]) -> dict[str, dict[str, float]]:
    """onecard's throughput, decoding and total, over the better transformers path's, by concurrency."""
    table: dict[str, dict[str, float]] = {}
    for concurrency, results in measured.items():
        figures = {name: medians(repeats) for name, repeats in results.items()}
        rivals = [figures[name] for name in TRANSFORMERS if name in figures]
        for name in ONECARD:
            if name not in figures or not rivals:
                continue
            for key in ("decode_tokens_per_s", "total_tokens_per_s"):
                best = max(rival[key] for rival in rivals)
                table.setdefault(f"{name} {key}", {})[str(concurrency)] = round(figures[name][key] / best, 2)
    return table


if __name__ == "__main__":
    main()
