"""Several models on a large card, simulated with the policies that serve: elastic memory, a static split.

The scheduler, the pools, the reclaim rules, the fair share and the cost model are the engine's own; only the
seconds of a step come from a card's data sheet (`simulator/cards.py`). `sharing.py` checks the method against
the real engine. Three workloads: kvcached's intermittent peaks, peaks that last longer than an answer, and
chats beside embedding floods and reranking. Prints a JSON line for each run, and one with the ratios.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.report import Report
from simulator.cards import CARDS, Card
from simulator.results import Objective, by_model, summary
from simulator.scenarios import LLAMAS, Outcome, Split, mixed, mixed_arrivals, three_llamas
from simulator.workloads import Arrival, alternating_peaks, intermittent_peaks

QUANTUM_SECONDS = 0.05
"""Room for a few steps: where decodes alone fill the quantum, prompts get on slowly."""
OBJECTIVE = Objective(first=1.0, gap=0.1)
COMPARED = (
    "goodput_per_s",
    "goodput_per_s_at_peak",
    "ttft_p50_ms_at_peak",
    "ttft_p99_ms_at_peak",
    "itl_p99_ms_at_peak",
)

Scenario = Callable[[Card, Split, Sequence[Arrival], float | None], Outcome]


@dataclass(frozen=True)
class Rates:
    """Requests a second that bring a card near its limit."""

    ramps: tuple[int, ...]
    long_peak: float
    chat: float


RATES = {
    "A100-80GB": Rates(ramps=(12, 16, 20), long_peak=1.6, chat=1.0),
    "H200": Rates(ramps=(40,), long_peak=6.5, chat=4.0),
}


def main() -> None:
    args = parse_arguments()
    settings = {"objective": vars(OBJECTIVE), "quick": args.quick}
    report = Report("sharing_simulated", settings)
    for name in args.cards:
        run_card(report, name, RATES[name], args.quantum or None, args.quick)
    report.write(args.json_out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cards", nargs="+", choices=list(CARDS), default=list(CARDS))
    parser.add_argument(
        "--quantum", type=float, default=QUANTUM_SECONDS, help="seconds; 0: none (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="a short run that only shows that it works")
    parser.add_argument("--json-out", type=Path, metavar="FILE", help="write all figures there, too")
    return parser.parse_args()


def run_card(report: Report, name: str, rates: Rates, quantum: float | None, quick: bool) -> None:
    card = Measured(report, name, CARDS[name])
    for rate in (4,) if quick else rates.ramps:
        ramps = intermittent_peaks(LLAMAS, rate, prompt_tokens=256, output_tokens=32 if quick else 400)
        card.compare(f"ramps to {rate}/s", three_llamas, ramps, quantum)
    hold = 2.0 if quick else 120.0
    long_peaks = alternating_peaks(
        LLAMAS, rates.long_peak, rates.long_peak / 50, hold, 0, 256, 50 if quick else 1500
    )
    card.compare(f"peaks of {rates.long_peak:g}/s", three_llamas, long_peaks, quantum)
    chats = mixed_arrivals(3.0 if quick else 120.0, rates.chat)
    card.compare("mixed", mixed, chats, quantum)
    lone = [arrival for arrival in chats if arrival.model == "assistant"]
    card.measure("elastic", "mixed, assistant alone", mixed, lone, quantum)
    card.measure("elastic", "mixed, no quanta", mixed, chats, None)


@dataclass(frozen=True)
class Measured:
    """Runs on one card, each reported as a row."""

    report: Report
    name: str
    card: Card

    def compare(
        self, workload: str, scenario: Scenario, arrivals: Sequence[Arrival], quantum: float | None
    ) -> None:
        elastic = self.measure("elastic", workload, scenario, arrivals, quantum)
        static = self.measure("static", workload, scenario, arrivals, quantum)
        self.report.add(
            {"card": self.name, "workload": workload, "elastic / static": ratios(elastic, static)}
        )

    def measure(
        self,
        split: Split,
        workload: str,
        scenario: Scenario,
        arrivals: Sequence[Arrival],
        quantum: float | None,
    ) -> dict[str, Any]:
        started = time.perf_counter()
        outcome = scenario(self.card, split, arrivals, quantum)
        row: dict[str, Any] = {"engine": split, "card": self.name, "workload": workload, "quantum_s": quantum}
        row |= summary(outcome.served, OBJECTIVE, outcome.preempted_tokens)
        if workload.startswith("mixed"):
            row["by_model"] = by_model(outcome.served)
        row["simulated_in_s"] = round(time.perf_counter() - started, 1)
        self.report.add(row)
        return row


def ratios(one: dict[str, Any], other: dict[str, Any]) -> dict[str, float | None]:
    """None where the other is 0."""
    return {key: round(one[key] / other[key], 3) if other[key] else None for key in COMPARED if key in other}


if __name__ == "__main__":
    main()
