"""How long one operation takes, and what this machine could do at best."""

import time
from collections.abc import Callable

import torch
from harness import gpu

CALLS = 20
"""In one captured graph: enough that a replay's own start doesn't count."""


def microseconds(call: Callable[[], object], device: torch.device) -> float:
    """On a card its own time, in a captured graph as decode steps are; on a CPU the best of many means."""
    if device.type == "cuda":
        return _on_card(call, device)
    call()
    repeats = 1
    while _timed(call, repeats) < 0.002 and repeats < 1000:
        repeats *= 2
    end = time.perf_counter() + 0.3
    best = _timed(call, repeats)
    while time.perf_counter() < end:
        best = min(best, _timed(call, repeats))
    return best / repeats * 1e6


def host_microseconds(call: Callable[[], object], device: torch.device) -> float:
    """What a launch costs the host while the card is behind."""
    torch.cuda.synchronize(device)
    taken = _timed(call, CALLS) / CALLS * 1e6
    torch.cuda.synchronize(device)
    return taken


def ceilings(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Bytes a second of a copy that no cache holds, operations a second of a square product."""
    if device.type == "cuda":
        return gpu.copy_bandwidth(device), gpu.matmul_rate(device, dtype)
    source, n = torch.ones(1 << 26), 1024
    target, a = torch.empty_like(source), torch.randn(n, n).to(dtype)
    bandwidth = 2 * source.nbytes / microseconds(lambda: target.copy_(source), device) * 1e6
    return bandwidth, 2 * n**3 / microseconds(lambda: a @ a, device) * 1e6


def _timed(call: Callable[[], object], repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    return time.perf_counter() - started


def _on_card(call: Callable[[], object], device: torch.device) -> float:
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):  # compiled and warm before the capture
        for _ in range(3):
            call()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for _ in range(CALLS):
                call()
    except RuntimeError:  # something in it reads results on the host
        torch.cuda.synchronize(device)
        return gpu.seconds(call, device) * 1e6
    return gpu.seconds(graph.replay, device, repeats=5, warmups=1) / CALLS * 1e6
