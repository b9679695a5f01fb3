"""What a plan must keep, and what is said where it can't: the numbers, and what to write instead. And what is
worth knowing about a plan that holds: who will have to borrow, and who to sleep."""

from collections.abc import Sequence
from typing import TypeVar

from onecard.engines.memory.card_plan import CardFacts, ModelNeeds, ModelPlan, PlanError
from onecard.engines.memory.homes import overlaps, promised_pages
from onecard.engines.memory.page_size import min_blocks_in_page
from onecard.registry.units import counted
from onecard.registry.units import format_bytes as human

SLACK_SHARE = 64
"""One 64th of the budget is left for allocators' rounding and fragmentation."""

_Model = TypeVar("_Model", ModelNeeds, ModelPlan)


def at_least(nbytes: int) -> str:
    """A size for a registry file that is `nbytes` rounded up: `312MiB`."""
    unit, suffix = (1 << 20, "MiB") if nbytes >= 10 << 20 else (1 << 10, "KiB")
    return f"{-(-nbytes // unit)}{suffix}"


def more_card(arena_bytes: int) -> str:
    """What to do for so many more bytes of arena: slack takes its share of them."""
    budget = arena_bytes * SLACK_SHARE // (SLACK_SHARE - 1) + 1
    return f"raise the card's `memory:` by at least {at_least(budget)}"


def start_groups(models: Sequence[_Model]) -> list[list[_Model]]:
    """Who must fit together when serving begins: those awake then; and the pinned ones with each of the
    others."""
    groups = [[m for m in models if m.awake_at_start]]
    groups += [[m for m in models if m.pinned or m is s] for s in models if not s.awake_at_start]
    return groups


def check_own_numbers(need: ModelNeeds) -> None:
    if need.floor > need.ceiling:
        raise PlanError(
            f"{need.name}: its floor of {human(need.floor)} is above its ceiling of "
            f"{human(need.ceiling)}: set `burst:` to at least {at_least(need.floor)} or lower `memory:`"
        )
    if 0 < need.floor < need.weight_bytes:
        raise PlanError(
            f"{need.name} needs {human(need.weight_bytes)} for its weights alone, but its floor is "
            f"{human(need.floor)}: set `memory:` to at least {at_least(need.weight_bytes)}, or to 0 "
            "for no guarantee"
        )


def check_block(card: str, name: str, block: int | None, page: int, num_pages: int) -> None:
    if block is not None and (page // block == 0 or min_blocks_in_page(page, block, num_pages) == 0):
        raise PlanError(
            f"{card}: a page of {human(page)} doesn't always hold a whole block of "
            f"{name}, which takes {human(block)}: set `page_size:` to at least "
            f"{at_least(2 * block)}, or leave it out"
        )


def check_pinned_homes(models: Sequence[ModelPlan]) -> None:
    """Whoever shares pages with a model that never sleeps could never wake up."""
    for pinned in (m for m in models if m.pinned):
        buried = [m.name for m in models if m is not pinned and overlaps(m.home, pinned.home)]
        if buried:
            raise PlanError(
                f"{pinned.name} can't be `pinned:` now: its weights lie where those of {', '.join(buried)} "
                "belong, which could never wake up: remove these, or start the server again"
            )


def check_room(facts: CardFacts, needs: Sequence[ModelNeeds], room: int) -> None:
    """Whether the weights of models that must fit together fit `room`."""
    for group in start_groups(needs):
        missing = sum(n.weight_bytes for n in group) - room
        if missing > 0:
            weights = " + ".join(f"{human(n.weight_bytes)} ({n.name})" for n in group)
            raise PlanError(
                f"{facts.name}: the weights take {weights}, workspace, graphs and slack "
                f"{human(facts.budget_bytes - room)}: {human(missing)} more than the card's budget of "
                f"{human(facts.budget_bytes)} (of {human(facts.total_bytes)}, "
                f"{human(facts.available_bytes)} available): raise the card's `memory:`, let models start "
                "asleep (`preload: false`), or serve fewer or smaller ones"
            )


def check_floors(facts: CardFacts, group: Sequence[ModelPlan], num_pages: int, page: int) -> None:
    """Whether homes and floors of models that must fit together do, in pages."""
    homes = sum(m.home_pages for m in group)
    missing = homes + sum(m.floor_pages for m in group) - num_pages
    if homes > num_pages:
        raise PlanError(
            f"{facts.name}: {', '.join(m.name for m in group)} can't be awake together: their weights take "
            f"{human(homes * page)} of {human(num_pages * page)}: let some start asleep (`preload: false`)"
        )
    if missing > 0:
        promised = " + ".join(f"{human(m.floor_pages * page)} ({m.name})" for m in group if m.floor_pages)
        raise PlanError(
            f"{facts.name}: beyond the weights, the floors guarantee {promised} of KV cache, but "
            f"{human((num_pages - homes) * page)} are left of the budget of {human(facts.budget_bytes)} "
            f"after weights, workspace, graphs and slack: lower `memory:` of these models by "
            f"{at_least(missing * page)} in all, or {more_card(missing * page)}"
        )


def check_longest_requests(
    facts: CardFacts,
    needs: Sequence[ModelNeeds],
    models: Sequence[ModelPlan],
    groups: Sequence[Sequence[ModelPlan]],
    num_pages: int,
    page: int,
) -> None:
    """Whether each model's longest request can run at all, within its ceiling and beside the homes of each of
    the groups that it is in."""
    for need, model in zip(needs, models):
        fullest = max((g for g in groups if model in g), key=lambda g: sum(m.home_pages for m in g))
        beside = [m.name for m in fullest if m is not model]
        reach = num_pages - sum(m.home_pages for m in fullest)
        most, pages = min(model.ceiling_pages, reach), model.longest_pages
        if pages <= most:
            continue
        tokens = most * model.blocks_per_page * need.block_size
        if pages <= reach:
            remedy = f"raise its `burst:` to at least {at_least((model.home_pages + pages) * page)}"
        else:
            remedy = more_card((pages - reach) * page)
        fits = f"set `max_model_len:` to at most {tokens} or " if tokens else ""
        others = f" and those of {', '.join(beside)}" if beside else ""
        raise PlanError(
            f"{need.name}: one request of max_model_len {need.max_model_len} needs "
            f"{counted(pages, 'page')} of {human(page)}, but beyond its weights of "
            f"{human(need.weight_bytes)}{others} it can have {most} "
            f"({counted(tokens, 'token')}) on {facts.name}: {fits}{remedy}"
        )


def notes_of(models: Sequence[ModelPlan], num_pages: int) -> list[str]:
    """A sentence each, for whoever wrote the registry."""
    borrowing = [
        f"{m.name}: {counted(m.kv_tokens_floor, 'token of KV cache is', 'tokens of KV cache are')} "
        f"guaranteed; a request of max_model_len {m.max_model_len} needs borrowed memory, and waits while "
        "other models use theirs"
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
        if names and promised_pages([m, *beside]) > num_pages:
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
        f"their weights would leave {counted(left, 'page')}, and a request of max_model_len "
        f"{most.max_model_len} to {most.name} takes {most.longest_pages}"
    )
