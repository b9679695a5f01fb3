"""How much memory work takes at most, beside what is held anyway."""

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
