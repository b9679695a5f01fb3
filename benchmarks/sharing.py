"""Several models on this machine: elastic memory beside a static split of it, and chat beside a flood.

Three language models (the demo's SmolLM2 under three names) share an arena in which a third holds a few
requests only. Both splits serve the same arrivals, one after the other, in process:

* kvcached's intermittent peaks at this machine's speed; peaks that last much longer than an answer; a mixed
  trace of chats, an index being built and searches being reranked;
* four chats at all times, alone and beside an embedding model that is flooded, with and without a quantum.

Then the simulator (`simulator/`) predicts the same runs, with the costs that the engines have learnt of
themselves, and is compared with what was measured. Prints a JSON line for each run and comparison.
"""

import argparse
import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.report import Report, add_common_arguments
from harness.weights import demo_weights
from sharing_node import MAX_BATCHED_TOKENS, MAX_SEQS, SharingNode, Split, plan_node
from simulator.results import Objective, Served, by_model, latencies, of_models, summary
from simulator.scenarios import Outcome
from simulator.twin import Coefficients, predict
from simulator.workloads import (
    Arrival,
    Lengths,
    alternating_peaks,
    bursts,
    chat,
    faster,
    intermittent_peaks,
    merged,
    swelling_chat,
)

from onecard.engines.paged.scheduler import SchedulerLimits

CHATS = ("chat-1", "chat-2", "chat-3")
EMBEDDER = "embedder"
PROMPT_TOKENS, OUTPUT_TOKENS = 32, 96
REQUESTS_IN_A_THIRD = 4
THIRD_TOKENS = REQUESTS_IN_A_THIRD * (PROMPT_TOKENS + OUTPUT_TOKENS)
HOLD_SECONDS = 20.0
"""Of a long peak; an answer within the objective takes less than a third of that."""
MIXED_SECONDS = 60.0
PEAK_RATE = 3
"""Of the ramps, before they are brought to this machine's speed: 27, 21 and 15 requests."""
QUANTUM_SECONDS = 0.1
UNBOUNDED_SECONDS = 1000.0
ENCODER_TOKENS = 2048
OBJECTIVE = Objective(first=1.5, gap=0.15)
COMPARED = ("goodput_per_s", "goodput_per_s_at_peak", "ttft_p50_ms_at_peak", "ttft_p99_ms_at_peak")
PREDICTED = ("seconds", "tokens_per_s", "ttft_p50_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p99_ms")

Rows = dict[str, dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser, repeats=1)
    parser.add_argument("--llm", type=Path, help="default: smollm2 of configs/demo.yaml")
    parser.add_argument("--encoder", type=Path, help="default: minilm of configs/demo.yaml")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # the card's thread reads it when it starts
    asyncio.run(measure(args))


async def measure(args: argparse.Namespace) -> None:
    paths = dict.fromkeys(CHATS, demo_weights("smollm2", args.llm))
    paths[EMBEDDER] = demo_weights("minilm", args.encoder)
    settings = {
        "threads": args.threads,
        "objective": vars(OBJECTIVE),
        "quantum_s": QUANTUM_SECONDS,
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
        "requests_in_a_third": REQUESTS_IN_A_THIRD,
    }
    report = Report("sharing", settings)
    for _ in range(1 if args.quick else args.repeats):
        await compare_splits(report, paths, args.quick)
        few = {name: paths[name] for name in (CHATS[0], EMBEDDER)}
        await compare_floods(report, few, 2 if args.quick else 12)
    report.write(args.json_out)


# --- elastic beside static ------------------------------------------------------------------------------


async def compare_splits(report: Report, paths: dict[str, Path], quick: bool) -> None:
    """The workloads' rates come from what the machine does with all of the memory: the elastic node tells."""
    workloads: dict[str, list[Arrival]] = {}
    measured: dict[Split, Rows] = {"elastic": {}, "static": {}}
    for split in measured:
        registry, plan = plan_node(paths, split, THIRD_TOKENS, QUANTUM_SECONDS)
        async with SharingNode(registry, paths) as node:
            full = await full_rate(node)
            workloads = workloads or split_workloads(full, quick)
            for name, arrivals in workloads.items():
                run = await node.serve(arrivals)
                row = summary(run.served, OBJECTIVE, run.preempted_tokens)
                measured[split][name] = row
                report.add({"engine": split, "workload": name, **row, "by_model": by_model(run.served)})
                foretold = predict(
                    plan, LIMITS, ENCODER_TOKENS, with_all(node.costs()), arrivals, QUANTUM_SECONDS
                )
                report.add(
                    {"workload": name, "split": split, "predicted / measured": accuracy(foretold, row)}
                )
    for name in workloads:
        ratios = quotients(measured["elastic"][name], measured["static"][name], COMPARED)
        report.add({"workload": name, "elastic / static": ratios})


LIMITS = SchedulerLimits(max_num_seqs=MAX_SEQS, max_num_batched_tokens=MAX_BATCHED_TOKENS)


async def full_rate(node: SharingNode) -> float:
    """Requests a second of one model that has all of the memory for itself, after a warm-up of all."""
    warm = [Arrival(0.0, name, (PROMPT_TOKENS,), 8) for name in CHATS]
    await node.serve([*warm, Arrival(0.0, EMBEDDER, (90,) * 32, 0)])
    count = 3 * len(CHATS) * REQUESTS_IN_A_THIRD
    run = await node.serve([Arrival(0.0, CHATS[0], (PROMPT_TOKENS,), OUTPUT_TOKENS)] * count)
    return count / max(served.times[-1] for served in run.served)


def split_workloads(full_rate: float, quick: bool) -> dict[str, list[Arrival]]:
    """Peaks of three quarters of what one model does with all of the memory and nobody beside it: the
    others' few requests take their part of the time."""
    if quick:
        return {"peaks": alternating_peaks(CHATS, 6.0, 1.0, 0.5, 0, PROMPT_TOKENS, OUTPUT_TOKENS)}
    rate = 0.75 * full_rate
    ramps = intermittent_peaks(CHATS, PEAK_RATE, PROMPT_TOKENS, OUTPUT_TOKENS)
    return {
        "ramps": faster(ramps, rate / PEAK_RATE),
        "peaks": alternating_peaks(CHATS, rate, rate / 50, HOLD_SECONDS, 0, PROMPT_TOKENS, OUTPUT_TOKENS),
        "mixed": mixed_arrivals(full_rate, MIXED_SECONDS),
    }


def mixed_arrivals(full_rate: float, seconds: float) -> list[Arrival]:
    """A chat that swells to half of what the machine can do, two quieter ones, batches of texts to index and
    searches to rerank."""
    lengths = Lengths(PROMPT_TOKENS, OUTPUT_TOKENS, spread=0.5, most=2)
    return merged(
        swelling_chat(CHATS[0], 0.1 * full_rate, seconds, 0, lengths),
        *(chat(name, 0.05 * full_rate, seconds, 0, lengths) for name in CHATS[1:]),
        bursts(EMBEDDER, 10.0, seconds, 0, requests=2, texts=32, text_tokens=60),
        bursts(EMBEDDER, 3.0, seconds, 1, requests=1, texts=20, text_tokens=90),
    )


def with_all(costs: dict[str, Coefficients]) -> dict[str, Coefficients]:
    """An engine that hasn't run yet costs what any other does: it won't run in the prediction, either."""
    return {name: costs.get(name) or costs[CHATS[0]] for name in (*CHATS, EMBEDDER)}


def accuracy(foretold: Outcome, measured: dict[str, Any]) -> dict[str, float | None]:
    predicted = summary(foretold.served, OBJECTIVE, foretold.preempted_tokens)
    return quotients(predicted, measured, PREDICTED)


def quotients(one: dict[str, Any], other: dict[str, Any], keys: Sequence[str]) -> dict[str, float | None]:
    """None where the other is 0."""
    return {key: round(one[key] / other[key], 3) if other[key] else None for key in keys if key in other}


# --- chat beside a flood --------------------------------------------------------------------------------


async def compare_floods(report: Report, paths: dict[str, Path], requests: int) -> None:
    """Gaps between tokens of four chats under a flood of embeddings beside those without it."""
    chats = [Arrival(0.0, CHATS[0], (PROMPT_TOKENS,), 8 * requests)] * REQUESTS_IN_A_THIRD
    texts = [Arrival(0.0, EMBEDDER, (128,) * 32, 0)] * requests
    gaps: dict[str, float] = {}
    for name, quantum in (("quantum", QUANTUM_SECONDS), ("no quantum", UNBOUNDED_SECONDS)):
        registry, _ = plan_node(paths, "elastic", 8 * THIRD_TOKENS, quantum)
        async with SharingNode(registry, paths) as node:
            await node.serve([*chats, texts[0]])
            if not gaps:
                gaps["lone"] = add_flood_row(report, "chat alone", (await node.serve(chats)).served)
            run = await node.serve([*chats, *texts])
            gaps[name] = add_flood_row(report, f"chat in a flood, {name}", run.served)
    bound = 1.5 * gaps["lone"] + QUANTUM_SECONDS * 1e3
    report.add({"chat itl_p99_ms": gaps, "1.5 x lone + quantum": round(bound, 1)})


def add_flood_row(report: Report, workload: str, served: list[Served]) -> float:
    figures = {key: round(value, 1) for key, value in latencies(of_models(served, CHATS[0])).items()}
    embedded = of_models(served, EMBEDDER)
    texts = sum(len(s.arrival.lengths) for s in embedded)
    rate = texts / max(s.times[-1] for s in embedded) if embedded else 0.0
    report.add({"engine": "elastic", "workload": workload, **figures, "texts_per_s": round(rate, 1)})
    return figures["itl_p99_ms"]


if __name__ == "__main__":
    main()
