"""The Markdown tables of docs/performance.md, from the files that the benchmarks wrote with --json-out.

python benchmarks/tables.py benchmarks/results/*.json
"""

import json
import sys
from pathlib import Path
from typing import Any

SHARING = {
    "engine": "memory",
    "workload": "workload",
    "goodput_per_s_at_peak": "goodput/s at the peak",
    "good_share_at_peak": "good",
    "ttft_p50_ms_at_peak": "TTFT p50 ms",
    "ttft_p99_ms_at_peak": "TTFT p99 ms",
    "itl_p50_ms_at_peak": "ITL p50 ms",
    "itl_p99_ms_at_peak": "ITL p99 ms",
    "preempted_tokens": "tokens preempted",
}

COLUMNS = {
    "llm": {
        "engine": "engine",
        "concurrency": "requests",
        "decode_tokens_per_s": "decode tok/s",
        "total_tokens_per_s": "output tok/s",
        "ttft_p50_ms": "TTFT p50 ms",
        "itl_p50_ms": "ITL p50 ms",
        "itl_p99_ms": "ITL p99 ms",
        "same_tokens": "same tokens",
        "decode_spread": "spread",
    },
    "embeddings": {
        "engine": "engine",
        "texts": "texts",
        "texts_per_s": "texts/s",
        "tokens_per_s": "tokens/s",
        "max_difference": "max difference",
        "spread": "spread",
    },
    "sharing": SHARING,
    "sharing_simulated": {"card": "card", **SHARING},
    "gateway": {
        "server": "server",
        "request": "request",
        "concurrency": "connections",
        "rate": "requests asked a second",
        "requests_per_s": "requests/s",
        "inside_p50_ms": "inside p50 ms",
        "inside_p99_ms": "inside p99 ms",
        "latency_p50_ms": "latency p50 ms",
        "latency_p99_ms": "latency p99 ms",
        "cpu_ms": "cpu ms",
    },
    "machine": {
        "threads": "threads",
        "rows": "rows",
        "copy_gb_s": "copy GB/s",
        "read_gb_s": "read GB/s",
        "F.linear_step_ms": "F.linear ms",
        "onednn_float32_step_ms": "oneDNN float32 ms",
        "fbgemm_float16_step_ms": "FBGEMM float16 ms",
        "onednn_float32_gflops": "oneDNN GFLOP/s",
        "fbgemm_float16_gflops": "FBGEMM GFLOP/s",
    },
}
"""Of each benchmark: the keys that make a row of its table, and their headings."""


def main() -> None:
    for path in map(Path, sys.argv[1:]):
        results = json.loads(path.read_text())
        print(f"### {path.stem}\n")
        print(f"`{json.dumps(results['machine'])}`\n\n`{json.dumps(results['settings'])}`\n")
        if results["benchmark"] in COLUMNS:
            print(table(results["rows"], COLUMNS[results["benchmark"]]))
        for row in results["rows"]:
            if not is_measurement(row):
                print(f"- `{json.dumps(row)}`")
        print()


def is_measurement(row: dict[str, Any]) -> bool:
    return any(key in row for key in ("engine", "server", "threads"))


def table(rows: list[dict[str, Any]], columns: dict[str, str]) -> str:
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + " --- |" * len(columns)]
    for row in filter(is_measurement, rows):
        lines.append("| " + " | ".join(cell(row.get(key, "")) for key in columns) + " |")
    return "\n".join(lines) + "\n"


def cell(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, float) and value >= 100 else str(value)


if __name__ == "__main__":
    main()
