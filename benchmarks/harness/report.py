"""Where, when and with which versions something was measured, and how it is written down."""

import argparse
import json
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("onecard", "torch", "transformers", "sentence-transformers", "aiohttp", "uvloop", "numpy")


class Report:
    """Rows of one run: each is printed as a JSON line as soon as it is known, all are written at the end."""

    def __init__(self, benchmark: str, settings: dict[str, Any]) -> None:
        self._head = {"benchmark": benchmark, "machine": machine(), "settings": settings}
        self._rows: list[dict[str, Any]] = []
        print(json.dumps(self._head), flush=True)

    def add(self, row: dict[str, Any], raw: Any = None) -> None:
        """Print `row`; `raw` (every repeat's figures, say) goes only into the file."""
        print(json.dumps(row), flush=True)
        self._rows.append({**row, "raw": raw} if raw is not None else row)

    def write(self, path: Path | None) -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({**self._head, "rows": self._rows}, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """Date, processor, memory, load, and versions of what takes part."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{package: package_version(package) for package in PACKAGES},
    }


def add_common_arguments(parser: argparse.ArgumentParser, repeats: int) -> None:
    """The options that every benchmark has."""
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=cores, help=f"compute threads (default: {cores})")
    parser.add_argument("--repeats", type=int, default=repeats, help=f"rounds (default: {repeats})")
    parser.add_argument("--quick", action="store_true", help="a short run that only shows that it works")
    parser.add_argument("--json-out", type=Path, metavar="FILE", help="write all figures there, too")


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if not facts.get("model name"):
        return platform.processor()
    vector = next((name for name in ("avx512f", "avx2") if name in facts.get("flags", "").split()), "")
    family = f"family {facts.get('cpu family')} model {facts.get('model')}"
    return f"{facts['model name']} ({family}, {vector})"


def package_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"
