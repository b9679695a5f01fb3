"""What of a card's memory goes where, decided before anything loads: pure arithmetic on bytes, no torch.

    budget = the largest workspace + graphs + slack + arena

Steps run one after another, so the workspace (activations) counts once. The arena is cut into pages. Each
model's weights have a home in it, a run of pages; its floor and ceiling, less its home, become further pages,
for KV. Models that are awake at start have their homes to themselves and must fit together with their floors;
a model that starts asleep must fit beside the pinned ones, and may overlap all others.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from onecard.engines.memory.card_plan import CardFacts, CardPlan, ModelNeeds, ModelPlan, PlanError
from onecard.engines.memory.homes import HomeNeed, overlaps, pages_for, place_homes
from onecard.engines.memory.page_size import choose_page_bytes, edge_waste, min_blocks_in_page
from onecard.registry.units import format_bytes as human

__all__ = [
    "CardFacts",
    "CardPlan",
    "ModelNeeds",
    "ModelPlan",
    "PlanError",
    "at_least",
    "plan_card",
    "replan_card",
]

SLACK_SHARE = 64
"""One 64th of the budget is left for allocators' rounding and fragmentation."""

LEAST_SLACK_SHARE = 128
"""What a reload leaves of that, where models come whose graphs nobody planned for."""

_Model = TypeVar("_Model", ModelNeeds, ModelPlan)


def at_least(nbytes: int) -> str:
    """A size for a registry file that is `nbytes` rounded up: `312MiB`."""
    unit, suffix = (1 << 20, "MiB") if nbytes >= 10 << 20 else (1 << 10, "KiB")
    return f"{-(-nbytes // unit)}{suffix}"


def plan_card(
    facts: CardFacts,
    needs: Sequence[ModelNeeds],
    page_bytes: int | None = None,
    slack_bytes: int | None = None,
) -> CardPlan:
    """Divides the card among the models; `page_bytes=None` chooses the size with the least waste.

    Raises PlanError when the models can't be served as the registry asks. Nothing is lowered silently.
    """
    for need in needs:
        _check_own_numbers(need)
    slack = facts.budget_bytes // SLACK_SHARE if slack_bytes is None else slack_bytes
    workspace = max((n.workspace_bytes for n in needs), default=0)
    graphs = sum(n.graph_bytes for n in needs)
    room = facts.budget_bytes - workspace - graphs - slack
    _check_room(facts, needs, room)
    page = _page_bytes(facts, needs, room, page_bytes)
    num_pages = room // page
    homes = _place(facts, needs, page, num_pages)
    models = _plan_models(needs, homes, page, num_pages)
    for group in _together(models):
        _check_floors(facts, group, num_pages, page)
    for need, model in zip(needs, models):
        reach = num_pages - model.home_pages - _beside_at_start(model, models)
        _check_longest_request(facts, need, model, reach, page)
    return CardPlan(
        card=facts.name,
        device=facts.device,
        total_bytes=facts.total_bytes,
        other_bytes=facts.total_bytes - facts.available_bytes,
        budget_bytes=facts.budget_bytes,
        weight_bytes=sum(n.weight_bytes for n in needs),
        workspace_bytes=workspace,
        graph_bytes=graphs,
        arena_bytes=num_pages * page,
        slack_bytes=slack + room - num_pages * page,
        page_bytes=page,
        num_pages=num_pages,
        waste=max((m.waste for m in models), default=0.0),
        models=models,
        notes=tuple(_notes(models, num_pages)),
    )


def replan_card(
    plan: CardPlan, needs: Sequence[ModelNeeds], homes: Mapping[str, range], awake: Collection[str]
) -> CardPlan:
    """The plan of a card that serves already, with other models or other numbers for them.

    What was allocated when the card was opened stays: its arena, its pages, and what is left beside it for a
    workspace and graphs. `awake` are those awake now that stay so. Raises PlanError as `plan_card` does.
    """
    for need in needs:
        _check_own_numbers(need)
        _check_block(plan.card, need.name, need.block_bytes, plan.page_bytes, plan.num_pages)
    workspace, graphs, slack = _beside_arena(plan, needs)
    facts = plan.facts()
    models = _plan_models(needs, homes, plan.page_bytes, plan.num_pages)
    _check_pinned_homes(models)
    together = [[m for m in models if m.name in awake]]
    together += [[m for m in models if m.pinned or m is one] for one in models]
    for group in together:
        _check_floors(facts, group, plan.num_pages, plan.page_bytes)
    for need, model in zip(needs, models):
        reach = plan.num_pages - model.home_pages - _beside_pinned(model, models)
        _check_longest_request(facts, need, model, reach, plan.page_bytes)
    return replace(
        plan,
        weight_bytes=sum(n.weight_bytes for n in needs),
        workspace_bytes=workspace,
        graph_bytes=graphs,
        slack_bytes=slack,
        waste=max((m.waste for m in models), default=0.0),
        models=models,
        notes=tuple(_notes(models, plan.num_pages)),
    )


def _plan_models(
    needs: Sequence[ModelNeeds], homes: Mapping[str, range], page: int, num_pages: int
) -> tuple[ModelPlan, ...]:
    pinned = sum(len(homes[n.name]) for n in needs if n.pinned)
    return tuple(_plan_model(n, homes[n.name], page, num_pages, pinned) for n in needs)


def _place(
    facts: CardFacts, needs: Sequence[ModelNeeds], page_bytes: int, num_pages: int
) -> Mapping[str, range]:
    """The models' homes. Rounded up to pages they may take more than `_check_room` saw."""
    wanted = [
        HomeNeed(n.name, pages_for(n.weight_bytes, page_bytes), n.awake_at_start, n.pinned) for n in needs
    ]
    try:
        return place_homes(wanted, num_pages)
    except PlanError as error:
        raise PlanError(
            f"{facts.name}: in pages of {human(page_bytes)}, {error}: raise the card's `memory:`, set a "
            "smaller `page_size:`, or serve fewer or smaller models"
        ) from error


def _plan_model(need: ModelNeeds, home: range, page_bytes: int, num_pages: int, pinned: int) -> ModelPlan:
    """`pinned`: pages of homes that are never lent."""
    floor_pages = ceiling_pages = blocks = 0
    waste = 0.0
    if need.block_bytes is not None:
        blocks = min_blocks_in_page(page_bytes, need.block_bytes, num_pages)
        waste = edge_waste(page_bytes, need.block_bytes, num_pages)
        floor_pages = max(0, need.floor // page_bytes - len(home))
        lendable = num_pages - pinned - (0 if need.pinned else len(home))
        ceiling_pages = min(lendable, max(0, need.ceiling // page_bytes - len(home)))
    tokens_per_page = blocks * need.block_size
    return ModelPlan(
        name=need.name,
        kind=need.kind,
        weight_bytes=need.weight_bytes,
        workspace_bytes=need.workspace_bytes,
        graph_bytes=need.graph_bytes,
        block_bytes=need.block_bytes,
        block_size=need.block_size,
        blocks_per_page=blocks,
        max_model_len=need.max_model_len,
        awake_at_start=need.awake_at_start,
        pinned=need.pinned,
        home_first_page=home.start,
        home_pages=len(home),
        floor_pages=floor_pages,
        ceiling_pages=ceiling_pages,
        kv_tokens_floor=floor_pages * tokens_per_page,
        kv_tokens_ceiling=ceiling_pages * tokens_per_page,
        waste=waste,
    )


def _beside_at_start(model: ModelPlan, models: Sequence[ModelPlan]) -> int:
    """Pages of homes beside which `model` needs room for a request: of those awake at start if it is one of
    them, else of the pinned ones."""
    both = model.awake_at_start
    return sum(m.home_pages for m in models if m is not model and (m.pinned or (both and m.awake_at_start)))


def _beside_pinned(model: ModelPlan, models: Sequence[ModelPlan]) -> int:
    """The same while serving, when all others may sleep."""
    return sum(m.home_pages for m in models if m is not model and m.pinned)


def _page_bytes(facts: CardFacts, needs: Sequence[ModelNeeds], room: int, asked: int | None) -> int:
    """The page size asked for, checked, or the one chosen."""
    blocks = {n.name: n.block_bytes for n in needs if n.block_bytes is not None}
    page = asked or choose_page_bytes(list(blocks.values()), room, [n.weight_bytes for n in needs])
    for name, block in blocks.items():
        _check_block(facts.name, name, block, page, max(1, room // page))
    if room < page:
        raise PlanError(
            f"{facts.name}: {human(room)} are left for weights and KV cache, less than one page of "
            f"{human(page)}: {_more_card(page - room)}"
        )
    return page


def _check_block(card: str, name: str, block: int | None, page: int, num_pages: int) -> None:
    if block is not None and (page // block == 0 or min_blocks_in_page(page, block, num_pages) == 0):
        raise PlanError(
            f"{card}: a page of {human(page)} doesn't always hold a whole block of "
            f"{name}, which takes {human(block)}: set `page_size:` to at least "
            f"{at_least(2 * block)}, or leave it out"
        )


def _beside_arena(plan: CardPlan, needs: Sequence[ModelNeeds]) -> tuple[int, int, int]:
    """Bytes of workspace, graphs and slack: they share what the card was opened with beside its arena."""
    workspace = max((n.workspace_bytes for n in needs), default=0)
    graphs = sum(n.graph_bytes for n in needs)
    beside = plan.workspace_bytes + plan.graph_bytes + plan.slack_bytes
    room = beside - plan.budget_bytes // LEAST_SLACK_SHARE
    if workspace + graphs > room:
        largest = max(needs, key=lambda need: need.workspace_bytes)
        raise PlanError(
            f"{plan.card}: the largest workspace ({human(workspace)}, {largest.name}) and graphs "
            f"({human(graphs)}) take {human(workspace + graphs)}, but beside its arena the card has "
            f"{human(max(room, 0))} for them: lower `max_num_batched_tokens:` or `max_num_seqs:` of "
            f"{largest.name}, or start the server again"
        )
    return workspace, graphs, beside - workspace - graphs


def _check_pinned_homes(models: Sequence[ModelPlan]) -> None:
    """Whoever shares pages with a model that never sleeps could never wake up."""
    for pinned in (m for m in models if m.pinned):
        buried = [m.name for m in models if m is not pinned and overlaps(m.home, pinned.home)]
        if buried:
            raise PlanError(
                f"{pinned.name} can't be `pinned:` now: its weights lie where those of {', '.join(buried)} "
                "belong, which could never wake up: remove these, or start the server again"
            )


def _check_own_numbers(need: ModelNeeds) -> None:
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


def _together(models: Sequence[_Model]) -> list[list[_Model]]:
    """Those awake at start; and the pinned ones with each of the others."""
    together = [[m for m in models if m.awake_at_start]]
    together += [[m for m in models if m.pinned or m is s] for s in models if not s.awake_at_start]
    return together


def _check_room(facts: CardFacts, needs: Sequence[ModelNeeds], room: int) -> None:
    """Whether the weights of models that must fit together fit `room`."""
    for group in _together(needs):
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


def _check_floors(facts: CardFacts, group: Sequence[ModelPlan], num_pages: int, page: int) -> None:
    """Whether homes and floors of models that must fit together do, in pages."""
    homes, floors = sum(m.home_pages for m in group), sum(m.floor_pages for m in group)
    missing = homes + floors - num_pages
    if missing > 0:
        promised = " + ".join(f"{human(m.floor_pages * page)} ({m.name})" for m in group if m.floor_pages)
        raise PlanError(
            f"{facts.name}: beyond the weights, the floors guarantee {promised} of KV cache, but "
            f"{human((num_pages - homes) * page)} are left of the budget of {human(facts.budget_bytes)} "
            f"after weights, workspace, graphs and slack: lower `memory:` of these models by "
            f"{at_least(missing * page)} in all, or {_more_card(missing * page)}"
        )


def _check_longest_request(
    facts: CardFacts, need: ModelNeeds, model: ModelPlan, reach: int, page: int
) -> None:
    """Whether a request of the longest length can run at all, within the ceiling and within `reach`."""
    most = min(model.ceiling_pages, reach)
    tokens = most * model.blocks_per_page * need.block_size
    if need.block_bytes is None or tokens >= need.max_model_len:
        return
    pages = -(-need.max_model_len // (model.blocks_per_page * need.block_size))
    if pages <= reach:
        remedy = f"raise its `burst:` to at least {at_least((model.home_pages + pages) * page)}"
    else:
        remedy = _more_card((pages - reach) * page)
    fits = f"set `max_model_len:` to at most {tokens} or " if tokens else ""
    raise PlanError(
        f"{need.name}: one request of max_model_len {need.max_model_len} needs {pages} pages of "
        f"{human(page)}, but beyond its weights of {human(need.weight_bytes)} it can have "
        f"{most} ({tokens} tokens) on {facts.name}: {fits}{remedy}"
    )


def _more_card(arena_bytes: int) -> str:
    """What to do for so many more bytes of arena: slack takes its share of them."""
    budget = arena_bytes * SLACK_SHARE // (SLACK_SHARE - 1) + 1
    return f"raise the card's `memory:` by at least {at_least(budget)}"


def _notes(models: Sequence[ModelPlan], num_pages: int) -> list[str]:
    borrowing = [
        f"{m.name}: {m.kv_tokens_floor} tokens of KV cache are guaranteed; a request of max_model_len "
        f"{m.max_model_len} needs borrowed memory"
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
    """Homes that lie apart are not enough: the floors have to hold, too."""
    notes = []
    for m in (m for m in models if not m.awake_at_start):
        beside = [o for o in models if o.awake_at_start and not overlaps(m.home, o.home)]
        names = [o.name for o in beside if not o.pinned]
        if names and sum(o.home_pages + o.floor_pages for o in (m, *beside)) > num_pages:
            others = f"{names[0]} can't be" if len(names) == 1 else f"not all of {', '.join(names)} can be"
            notes.append(
                f"{m.name} starts asleep; while it is awake, {others}: "
                "their floors and its own don't fit together"
            )
    return notes
