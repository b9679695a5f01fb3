"""What the gpu_*.py scripts share: options, the card's name, and times by the card's own clock."""

import argparse
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch


def parse_arguments(doc: str | None, **extra: Any) -> argparse.Namespace:
    """`--cpu`, `--json-out`, and an option for every keyword with that default."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="tiny shapes on the CPU: only shows that it works")
    parser.add_argument("--json-out", type=Path, metavar="FILE", help="write all figures there, too")
    for name, default in extra.items():
        option = f"--{name.replace('_', '-')}"
        kind = str if default is None else type(default)
        parser.add_argument(option, type=kind, default=default, help=f"default: {default}")
    args = parser.parse_args()
    if not args.cpu and not torch.cuda.is_available():
        parser.error("no CUDA card that this torch can use; --cpu makes a dry run")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary models go, too
    return args


def device_of(args: argparse.Namespace) -> torch.device:
    return torch.device("cpu" if args.cpu else "cuda:0")


def card_facts(device: torch.device) -> dict[str, Any]:
    """For a report's settings."""
    if device.type == "cpu":
        return {"device": "cpu", "dry_run": True}
    facts = torch.cuda.get_device_properties(device)
    return {
        "device": facts.name,
        "memory_gib": round(facts.total_memory / 2**30, 1),
        "multiprocessors": facts.multi_processor_count,
        "cuda": torch.version.cuda,
    }


def seconds(call: Callable[[], object], device: torch.device, repeats: int = 10, warmups: int = 3) -> float:
    """The median of `repeats` calls, by the card's events (the processor's clock on a CPU)."""
    for _ in range(warmups):
        call()
    if device.type == "cpu":
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
        return median(times)
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)
    ]
    for begin, end in events:
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize(device)
    return median(begin.elapsed_time(end) for begin, end in events) / 1e3


def copy_bandwidth(device: torch.device, nbytes: int = 4 << 30) -> float:
    """Bytes a second, read and written, of a copy that no cache holds."""
    if device.type == "cpu":
        nbytes = 32 << 20
    source = torch.ones(nbytes // 4, device=device)
    target = torch.empty_like(source)
    return 2 * nbytes / seconds(lambda: target.copy_(source), device)


def matmul_rate(device: torch.device, dtype: torch.dtype, n: int = 8192) -> float:
    """Floating-point operations a second of a square product of random numbers."""
    n = 256 if device.type == "cpu" else n
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    return 2 * n**3 / seconds(lambda: a @ b, device)
