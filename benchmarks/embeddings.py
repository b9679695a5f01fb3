"""An embedding model: onecard beside sentence-transformers, same weights, float32, same number of threads.

Three sets of texts: of mixed lengths, all short, all long. onecard gets them in one request, and a second
time as that many requests of one text each, as a server's clients send them. Engines live in processes of
their own and take turns; a figure is the median of its rounds, each with texts of its own. Prints a JSON line
for each engine and set, and one with the ratios; the vectors of all engines are compared, too.
"""

import argparse
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness.report import Report, add_common_arguments
from harness.statistics import Metrics, medians, rounded, spread
from harness.weights import demo_weights
from harness.workers import Worker
from tokenizers import Tokenizer

PEER = "sentence-transformers"
SPECIAL_TOKENS = 2
TEXT = (
    "the of and to in a is that it was for on are as with they be at one have this from by hot but some "
    "what there we can out other were all your when up use word how said an each she which do their time "
    "if will way about many then them would write like so these her long make thing see him two has look "
    "more day could go come did my sound no most number who over know water than call first people may "
    "down side been now find any new work part take get place made live where after back little only "
    "round man year came show every good me give our under name very through just form much great think "
    "say help low line before turn cause same mean differ move right boy old too does tell sentence set "
    "three want air well also play small end put home read hand port large spell add even land here must "
    "big high such follow act why ask men change went light kind off need house picture try us again "
    "animal point mother world near build self earth father memory computer library language engine"
)
WORDS = TEXT.split()


def main() -> None:
    args = parse_arguments()
    path = demo_weights("minilm", args.model)
    count = 32 if args.quick else args.texts
    repeats = 1 if args.quick else args.repeats
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    settings = {"model": "minilm", "threads": args.threads, "texts": count, "repeats": repeats}
    report = Report("embeddings", settings)
    model, threads = str(path), str(args.threads)
    with (
        Worker("onecard", "embed_onecard.py", [model], args.threads) as onecard,
        Worker(PEER, "embed_sentence_transformers.py", [model, threads], args.threads) as peer,
    ):
        runs = [("onecard, one request", onecard, False), ("onecard, a request each", onecard, True)]
        runs.append((PEER, peer, False))
        ratios = {}
        for name, draw_length in LENGTHS.items():
            results = measure(runs, name, draw_length, count, repeats, tokenizer)
            add_rows(report, runs, name, results)
            ratios[name] = ratio_row(results)
        report.add({"ratios over sentence-transformers": ratios})
    report.write(args.json_out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser, repeats=5)
    parser.add_argument("--model", type=Path, help="a folder (default: minilm of configs/demo.yaml)")
    parser.add_argument("--texts", type=int, default=256, help="texts a round (default: 256)")
    return parser.parse_args()


def mixed(generator: random.Random) -> int:
    return int(min(max(generator.lognormvariate(4.0, 0.8), 10), 256))


LENGTHS: dict[str, Callable[[random.Random], int]] = {
    "mixed, 10 to 256 tokens": mixed,
    "short, about 30 tokens": lambda generator: generator.randint(25, 35),
    "long, about 200 tokens": lambda generator: generator.randint(180, 220),
}


def texts_of(
    seed: str, count: int, draw_length: Callable[[random.Random], int], tokenizer: Tokenizer
) -> list[str]:
    """Random common words, cut to the lengths in tokens (special ones included) that `draw_length` gives."""
    generator = random.Random(seed)
    return [text_of(draw_length(generator), generator, tokenizer) for _ in range(count)]


def text_of(length: int, generator: random.Random, tokenizer: Tokenizer) -> str:
    words = generator.choices(WORDS, k=length)
    end = tokenizer.encode(" ".join(words), add_special_tokens=False).offsets[length - SPECIAL_TOKENS - 1][1]
    return " ".join(words)[:end]


Runs = Sequence[tuple[str, Worker, bool]]


def measure(
    runs: Runs,
    lengths: str,
    draw_length: Callable[[random.Random], int],
    count: int,
    repeats: int,
    tokenizer: Tokenizer,
) -> dict[str, list[Metrics]]:
    results: dict[str, list[Metrics]] = {name: [] for name, _, _ in runs}
    for round_number in range(-1, repeats):
        texts = texts_of(f"{lengths} {round_number}", count, draw_length, tokenizer)
        tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch(texts))
        answers = {
            name: worker.ask({"texts": texts, "separately": separately}) for name, worker, separately in runs
        }
        if round_number < 0:
            continue  # everybody has warmed up
        expected = np.array(answers[PEER]["vectors"])
        for name, answer in answers.items():
            figures = {
                "texts_per_s": count / answer["seconds"],
                "tokens_per_s": tokens / answer["seconds"],
                "max_difference": float(np.abs(np.array(answer["vectors"]) - expected).max()),
            }
            results[name].append(figures)
    return results


def add_rows(report: Report, runs: Runs, lengths: str, results: dict[str, list[Metrics]]) -> None:
    for name, worker, _ in runs:
        repeats = results[name]
        row: dict[str, Any] = {"engine": name, **worker.hello, "texts": lengths, **rounded(medians(repeats))}
        row["max_difference"] = float(f"{max(repeat['max_difference'] for repeat in repeats):.2g}")
        row["spread"] = round(spread([repeat["texts_per_s"] for repeat in repeats]), 3)
        report.add(row, raw=repeats)


def ratio_row(results: dict[str, list[Metrics]]) -> dict[str, float]:
    peer = medians(results[PEER])["texts_per_s"]
    return {
        name: round(medians(repeats)["texts_per_s"] / peer, 2)
        for name, repeats in results.items()
        if name != PEER
    }


if __name__ == "__main__":
    main()
