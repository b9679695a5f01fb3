"""What of a card's memory goes where, decided before anything loads: pure arithmetic on bytes, no torch.

    budget = the largest workspace + graphs + slack + arena

Steps run one after another, so the workspace (activations) counts once. The arena is cut into pages. Each
model's weights have a home in it, a run of pages; its floor and ceiling, less its home, become further pages,
for KV. Models that are awake at start have their homes to themselves and must fit together, with their floors
and with the longest request of each; a model that starts asleep must so fit beside the pinned ones, and may
overlap all others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from onecard.engines.memory import plan_checks
from onecard.engines.memory.card_plan import CardFacts, CardPlan, ModelNeeds, ModelPlan, PlanError
from onecard.engines.memory.homes import Resident, pages_for, place_beside, place_homes, promised_pages
from onecard.engines.memory.page_size import choose_page_bytes, edge_waste, min_blocks_in_page
from onecard.registry.units import format_bytes as human

LEAST_SLACK_SHARE = 128
"""What a reload leaves of the slack, where models come whose graphs nobody planned for."""


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
        plan_checks.check_own_numbers(need)
    slack = facts.budget_bytes // plan_checks.SLACK_SHARE if slack_bytes is None else slack_bytes
    workspace = max((n.workspace_bytes for n in needs), default=0)
    graphs = sum(n.graph_bytes for n in needs)
    room = facts.budget_bytes - workspace - graphs - slack
    plan_checks.check_room(facts, needs, room)
    page = _page_bytes(facts, needs, room, page_bytes)
    num_pages = room // page
    homes = _place(facts, needs, page, num_pages)
    models = _plan_models(needs, homes, page, num_pages)
    groups = plan_checks.start_groups(models)
    for group in groups:
        plan_checks.check_floors(facts, group, num_pages, page)
    plan_checks.check_longest_requests(facts, needs, models, groups, num_pages, page)
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
        notes=(*([facts.note] if facts.note else []), *plan_checks.notes_of(models, num_pages)),
    )


def replan_card(plan: CardPlan, staying: Sequence[Resident], needs: Sequence[ModelNeeds]) -> CardPlan:
    """The plan of a card that serves already, once the models with these `needs` are on it: others have left.

    What was allocated when the card was opened stays: its arena, its pages, and what is left beside it for a
    workspace and graphs. So do the homes of models that are `staying`; those that come get theirs beside
    them, or over those of models that will have to sleep for them. Of the models that start awake those that
    stay must fit together, unless they didn't so far; the others find room as a waking model does. Who is
    awake at the moment says only whom a new home displaces last: a file is judged by what it says. Raises
    PlanError as `plan_card` does.
    """
    homes, kept = _place_beside(plan, staying, needs), {model.name for model in staying}
    for need in needs:
        plan_checks.check_own_numbers(need)
        plan_checks.check_block(plan.card, need.name, need.block_bytes, plan.page_bytes, plan.num_pages)
    workspace, graphs, slack = _beside_arena(plan, needs)
    facts = plan.facts()
    models = _plan_models(needs, homes, plan.page_bytes, plan.num_pages)
    plan_checks.check_pinned_homes(models)
    groups = [[m for m in models if m.pinned or m is one] for one in models]
    if promised_pages([m for m in plan.models if m.awake_at_start]) <= plan.num_pages:
        groups.insert(0, [m for m in models if m.awake_at_start and m.name in kept])
    for group in groups:
        plan_checks.check_floors(facts, group, plan.num_pages, plan.page_bytes)
    plan_checks.check_longest_requests(facts, needs, models, groups, plan.num_pages, plan.page_bytes)
    return replace(
        plan,
        weight_bytes=sum(n.weight_bytes for n in needs),
        workspace_bytes=workspace,
        graph_bytes=graphs,
        slack_bytes=slack,
        waste=max((m.waste for m in models), default=0.0),
        models=models,
        notes=tuple(plan_checks.notes_of(models, plan.num_pages)),
    )


def _plan_models(
    needs: Sequence[ModelNeeds], homes: Mapping[str, range], page: int, num_pages: int
) -> tuple[ModelPlan, ...]:
    pinned = sum(len(homes[n.name]) for n in needs if n.pinned)
    return tuple(_plan_model(n, homes[n.name], page, num_pages, pinned) for n in needs)


def _place(
    facts: CardFacts, needs: Sequence[ModelNeeds], page_bytes: int, num_pages: int
) -> Mapping[str, range]:
    """The models' homes. Rounded up to pages they may take more than `check_room` saw."""
    try:
        return place_homes([_homeless(need, page_bytes) for need in needs], num_pages)
    except PlanError as error:
        raise PlanError(
            f"{facts.name}: in pages of {human(page_bytes)}, {error}: raise the card's `memory:`, set a "
            "smaller `page_size:`, or serve fewer or smaller models"
        ) from error


def _place_beside(
    plan: CardPlan, staying: Sequence[Resident], needs: Sequence[ModelNeeds]
) -> Mapping[str, range]:
    kept = {model.name: model for model in staying}
    settled = [replace(kept[n.name], pinned=n.pinned) for n in needs if n.name in kept]
    wanted = [_homeless(need, plan.page_bytes) for need in needs if need.name not in kept]
    return {model.name: model.home for model in settled} | place_beside(settled, wanted, plan.num_pages)


def _homeless(need: ModelNeeds, page_bytes: int) -> Resident:
    return Resident(
        need.name, range(pages_for(need.weight_bytes, page_bytes)), need.awake_at_start, need.pinned
    )


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


def _page_bytes(facts: CardFacts, needs: Sequence[ModelNeeds], room: int, asked: int | None) -> int:
    """The page size asked for, checked, or the one chosen."""
    blocks = {n.name: n.block_bytes for n in needs if n.block_bytes is not None}
    page = asked or choose_page_bytes(list(blocks.values()), room, [n.weight_bytes for n in needs])
    for name, block in blocks.items():
        plan_checks.check_block(facts.name, name, block, page, max(1, room // page))
    if room < page:
        raise PlanError(
            f"{facts.name}: {human(room)} are left for weights and KV cache, less than one page of "
            f"{human(page)}: {plan_checks.more_card(page - room)}"
        )
    return page


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
