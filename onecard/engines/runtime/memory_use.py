"""How much of a card's memory work takes, beside what is held anyway; and giving back what the C library's
heap doesn't use."""

import ctypes
import gc
import sys
from collections.abc import Callable

import torch


def counts_memory(device: torch.device) -> bool:
    """Whether there is anybody to ask what work takes there."""
    return device.type == "cuda"


def peak_bytes(device: torch.device, work: Callable[[], None]) -> int | None:
    """Runs `work` and returns the most that it held at once of torch's memory on `device`.

    None where nobody counts (a CPU): the work runs all the same.
    """
    if not counts_memory(device):
        work()
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def taken_bytes(device: torch.device, work: Callable[[], None]) -> int | None:
    """Runs `work` and returns how much less of the card is free then, whoever took it (CUDA's driver, too).

    None on a CPU: the work runs all the same.
    """
    if not counts_memory(device):
        work()
        return None
    torch.cuda.synchronize(device)
    before, _ = torch.cuda.mem_get_info(device)
    work()
    torch.cuda.synchronize(device)
    after, _ = torch.cuda.mem_get_info(device)
    return max(0, before - after)


def give_back_heap() -> None:
    """Return what is free in the heap to the system, where the C library can (glibc).

    It keeps freed blocks otherwise, a model's weights and what was read to make them included, in a heap of
    its own for every thread. Takes some 10 ms after a large release, else 1.
    """
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def collect_garbage() -> None:
    """Free what only refers to itself by now, and return it to the system. Takes up to 0.2 s of the GIL; less
    in a server, whose imports the collector leaves alone."""
    gc.collect()
    give_back_heap()
