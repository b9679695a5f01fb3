"""What is worth knowing about a plan that holds: who will have to borrow, and who to sleep."""

from collections.abc import Sequence

from onecard.engines.memory.card_plan import ModelPlan
from onecard.engines.memory.homes import overlaps
from onecard.engines.memory.plan_checks import fit_together


def notes_of(models: Sequence[ModelPlan], num_pages: int) -> list[str]:
    """A sentence each, for whoever wrote the registry."""
    borrowing = [
        f"{m.name}: {m.kv_tokens_floor} tokens of KV cache are guaranteed; a request of max_model_len "
        f"{m.max_model_len} needs borrowed memory, and waits while other models use theirs"
        for m in models
        if m.block_bytes is not None and m.kv_tokens_floor < m.max_model_len
    ]
    displacing = [
        f"{m.name} starts asleep; while it is awake, {', '.join(names)} must sleep: their homes overlap"
        for m in models
        if not m.awake_at_start
        and (names := [o.name for o in models if o is not m and overlaps(m.home, o.home)])
    ]
    return borrowing + displacing + _crowding(models, num_pages)


def _crowding(models: Sequence[ModelPlan], num_pages: int) -> list[str]:
    """Homes that lie apart are not enough: the floors have to hold, too, and the longest request of each must
    find room."""
    notes = []
    for m in (m for m in models if not m.awake_at_start):
        beside = [o for o in models if o.awake_at_start and not overlaps(m.home, o.home)]
        names = [o.name for o in beside if not o.pinned]
        if names and not fit_together([m, *beside], num_pages):
            others = f"{names[0]} can't be" if len(names) == 1 else f"not all of {', '.join(names)} can be"
            notes.append(
                f"{m.name} starts asleep; while it is awake, {others}: {_why([m, *beside], num_pages)}"
            )
    return notes


def _why(group: Sequence[ModelPlan], num_pages: int) -> str:
    """What of models that don't fit together is too much."""
    left = num_pages - sum(m.home_pages for m in group)
    if sum(m.floor_pages for m in group) > left:
        return "their floors and its own don't fit together"
    most = max(group, key=lambda m: m.longest_pages)
    return (
        f"their weights would leave {left} pages, and a request of max_model_len {most.max_model_len} to "
        f"{most.name} takes {most.longest_pages}"
    )
