"""What a card is and how much memory it has: a GPU, or the machine's memory within its control group."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from onecard.engines.memory.card_plan import CardFacts, PlanError
from onecard.engines.memory.plan_checks import at_least
from onecard.registry.spec import CardSpec
from onecard.registry.units import format_bytes as human

CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_MEMBERSHIP = Path("/proc/self/cgroup")


def resolve_device(device: str = "auto") -> torch.device:
    """`auto` is cuda:0 where there is one, else cpu. Raises PlanError for a device that isn't there."""
    if device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise PlanError(f"`device: {device}` is no device: write auto, cpu, cuda or cuda:N") from None
    if resolved.type not in ("cpu", "cuda"):
        raise PlanError(f"`device: {device}` is not served: write auto, cpu, cuda or cuda:N")
    if resolved.type == "cpu":
        return torch.device("cpu")
    index, count = resolved.index or 0, torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        found = f"this machine has {count} CUDA devices" if count else "no CUDA device is usable here"
        raise PlanError(f"`device: {device}`: {found}: write {'a lower number' if count else 'auto or cpu'}")
    return torch.device("cuda", index)


DEFAULT_SHARE = 0.9
"""Of a card whose `memory:` the registry doesn't name."""

MARGIN_SHARE = 32
"""One 32nd of such a card is left free where others use so much that less than the default is to be had."""


def card_facts(spec: CardSpec) -> CardFacts:
    """Measures the card and its budget. Raises PlanError if the registry names one that isn't free now."""
    device = resolve_device(spec.device)
    available, total = torch.cuda.mem_get_info(device) if device.type == "cuda" else host_memory()
    if spec.memory is None:
        return _default_budget(spec.name, device, total, available)
    budget = spec.memory.of(total)
    if budget > available:
        share = int(100 * available / total) / 100
        raise PlanError(
            f"{spec.name} ({device}): `memory:` asks for {human(budget)} of {human(total)}, "
            f"but only {human(available)} are available: others use {human(total - available)}; free some, "
            f"set `memory:` to at most {share} or {at_least(available - (1 << 20))}, or leave it out"
        )
    return CardFacts(spec.name, str(device), total, available, budget)


def _default_budget(name: str, device: torch.device, total: int, available: int) -> CardFacts:
    """Nobody has asked for a figure: what others use is theirs."""
    wanted, margin = int(DEFAULT_SHARE * total), total // MARGIN_SHARE
    budget = min(wanted, max(0, available - margin))
    if budget == wanted:
        return CardFacts(name, str(device), total, available, budget)
    note = (
        f"{name}: others use {human(total - available)} of {human(total)}, so onecard takes {human(budget)}, "
        f"what is free less {human(margin)}, and not {DEFAULT_SHARE:g} of all; "
        "the card's `memory:` in the registry says another amount"
    )
    return CardFacts(name, str(device), total, available, budget, note)


def host_memory(root: Path = CGROUP_ROOT, membership: Path = CGROUP_MEMBERSHIP) -> tuple[int, int]:
    """Bytes (available, total) of this machine's memory, or of the tightest control group around us."""
    memory = psutil.virtual_memory()
    available, total = memory.available, memory.total
    for limit, used in _cgroup_limits(root, membership):
        total = min(total, limit)
        available = min(available, limit - used)
    return max(0, available), total


def _cgroup_limits(root: Path, membership: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes in use that can't be reclaimed) of every group around this process that has a limit."""
    for base, path in _memberships(root, membership):
        for folder in (base / path, *(base / path).parents):
            limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
            used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
            if limit is not None:
                yield limit, max(0, (used or 0) - _inactive_file(folder))
            if folder == base:
                break


def _memberships(root: Path, membership: Path) -> Iterator[tuple[Path, str]]:
    """Hierarchies that limit memory, and our place in each; v1's is a folder named `memory`."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield root, path.lstrip("/")
        elif "memory" in controllers.split(","):
            yield root / "memory", path.lstrip("/")


def _number(path: Path) -> int | None:
    """The integer that a file holds; None without one, or where it says `max`."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _inactive_file(folder: Path) -> int:
    """Page cache that the kernel drops before it runs out."""
    try:
        fields = dict(line.split(maxsplit=1) for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(fields.get("total_inactive_file", fields.get("inactive_file", 0)))
