"""What of a card's memory goes where, decided before anything loads: pure arithmetic on bytes, no torch.

    budget = weights of all models + the largest workspace + arena + slack

Steps run one after another, so the workspace (activations) counts once. The arena is cut into pages, and each
model's floor and ceiling, less its weights, become pages of it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from onecard.engines.memory.page_size import choose_page_bytes, edge_waste, min_blocks_in_page
from onecard.registry.units import format_bytes as human

SLACK_SHARE = 64
"""One 64th of the budget is left for allocators' rounding and fragmentation."""


class PlanError(ValueError):
    """The models don't fit the card; the message has the numbers and what to change."""


@dataclass(frozen=True)
class CardFacts:
    """A card as it is now, in bytes. `budget_bytes` is what onecard may take of it."""

    name: str
    device: str
    total_bytes: int
    available_bytes: int
    budget_bytes: int


@dataclass(frozen=True)
class ModelNeeds:
    """What one model needs and may have, in bytes. `block_bytes` is None for a model without KV blocks.

    `floor` and `ceiling` cover weights and KV; floor 0 is no guarantee. `block_size` and `max_model_len` are
    tokens.
    """

    name: str
    kind: str
    weight_bytes: int
    workspace_bytes: int
    block_bytes: int | None
    block_size: int
    max_model_len: int
    floor: int
    ceiling: int


@dataclass(frozen=True)
class ModelPlan:
    """One model's place on the card. Token counts are those that are sure to fit the pages."""

    name: str
    kind: str
    weight_bytes: int
    workspace_bytes: int
    block_bytes: int | None
    block_size: int
    blocks_per_page: int
    max_model_len: int
    floor_pages: int
    ceiling_pages: int
    kv_tokens_floor: int
    kv_tokens_ceiling: int
    waste: float
    """Share of the model's pages that is lost at page edges, 0..1."""


@dataclass(frozen=True)
class CardPlan:
    """The whole card. All sizes in bytes; `slack_bytes` includes what is too little for another page."""

    card: str
    device: str
    total_bytes: int
    other_bytes: int
    """In use by others when the plan was made."""
    budget_bytes: int
    weight_bytes: int
    workspace_bytes: int
    arena_bytes: int
    slack_bytes: int
    page_bytes: int
    num_pages: int
    waste: float
    """That of the model that loses most."""
    models: tuple[ModelPlan, ...]
    notes: tuple[str, ...] = ()

    @property
    def unused_bytes(self) -> int:
        """Neither in use by others nor given to onecard."""
        return self.total_bytes - self.other_bytes - self.budget_bytes

    def terms(self) -> list[tuple[str, int]]:
        """Labels and bytes, in drawing order, that add up to the card's total."""
        weights = [(f"{m.name} weights", m.weight_bytes) for m in self.models]
        return [
            ("other use", self.other_bytes),
            *weights,
            ("workspace", self.workspace_bytes),
            ("arena", self.arena_bytes),
            ("slack", self.slack_bytes),
            ("not given to onecard", self.unused_bytes),
        ]

    def model(self, name: str) -> ModelPlan:
        return next(m for m in self.models if m.name == name)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "unused_bytes": self.unused_bytes}


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
    weights = sum(n.weight_bytes for n in needs)
    workspace = max((n.workspace_bytes for n in needs), default=0)
    room = facts.budget_bytes - weights - workspace - slack
    paged = [n for n in needs if n.block_bytes is not None]
    _check_room(facts, needs, room, workspace, slack)
    page = _page_bytes(facts, paged, room, page_bytes)
    num_pages = room // page if paged else 0
    models = tuple(_plan_model(n, page, num_pages) for n in needs)
    _check_floors(facts, models, num_pages, page)
    for need, model in zip(needs, models):
        _check_longest_request(facts, need, model, num_pages, page)
    arena = num_pages * page
    return CardPlan(
        card=facts.name,
        device=facts.device,
        total_bytes=facts.total_bytes,
        other_bytes=facts.total_bytes - facts.available_bytes,
        budget_bytes=facts.budget_bytes,
        weight_bytes=weights,
        workspace_bytes=workspace,
        arena_bytes=arena,
        slack_bytes=facts.budget_bytes - weights - workspace - arena,
        page_bytes=page,
        num_pages=num_pages,
        waste=max((m.waste for m in models), default=0.0),
        models=models,
        notes=tuple(_notes(models)),
    )


def _plan_model(need: ModelNeeds, page_bytes: int, num_pages: int) -> ModelPlan:
    floor_pages = ceiling_pages = blocks = 0
    waste = 0.0
    if need.block_bytes is not None:
        blocks = min_blocks_in_page(page_bytes, need.block_bytes, num_pages)
        waste = edge_waste(page_bytes, need.block_bytes, num_pages)
        floor_pages = max(0, need.floor - need.weight_bytes) // page_bytes
        ceiling_pages = min(num_pages, max(0, need.ceiling - need.weight_bytes) // page_bytes)
    tokens_per_page = blocks * need.block_size
    return ModelPlan(
        name=need.name,
        kind=need.kind,
        weight_bytes=need.weight_bytes,
        workspace_bytes=need.workspace_bytes,
        block_bytes=need.block_bytes,
        block_size=need.block_size,
        blocks_per_page=blocks,
        max_model_len=need.max_model_len,
        floor_pages=floor_pages,
        ceiling_pages=ceiling_pages,
        kv_tokens_floor=floor_pages * tokens_per_page,
        kv_tokens_ceiling=ceiling_pages * tokens_per_page,
        waste=waste,
    )


def _page_bytes(facts: CardFacts, paged: Sequence[ModelNeeds], room: int, asked: int | None) -> int:
    """The page size asked for, checked, or the one chosen."""
    blocks = {n.name: n.block_bytes for n in paged if n.block_bytes is not None}
    page = asked or choose_page_bytes(list(blocks.values()), room)
    for name, block in blocks.items():
        if page // block == 0 or min_blocks_in_page(page, block, max(1, room // page)) == 0:
            raise PlanError(
                f"{facts.name}: a page of {human(page)} doesn't always hold a whole block of "
                f"{name}, which takes {human(block)}: set `page_size:` to at least "
                f"{at_least(2 * block)}, or leave it out"
            )
    if paged and room < page:
        raise PlanError(
            f"{facts.name}: {human(room)} are left for the KV cache, less than one page of "
            f"{human(page)}: {_more_card(page - room)}"
        )
    return page


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


def _check_room(facts: CardFacts, needs: Sequence[ModelNeeds], room: int, workspace: int, slack: int) -> None:
    if room >= 0:
        return
    weights = " + ".join(f"{human(n.weight_bytes)} ({n.name})" for n in needs)
    raise PlanError(
        f"{facts.name}: the weights take {weights}, the workspace {human(workspace)} and slack "
        f"{human(slack)}: {human(-room)} more than the card's budget of "
        f"{human(facts.budget_bytes)} (of {human(facts.total_bytes)}, "
        f"{human(facts.available_bytes)} available): raise the card's `memory:` or serve fewer or smaller "
        "models"
    )


def _check_floors(facts: CardFacts, models: Sequence[ModelPlan], num_pages: int, page: int) -> None:
    promised = sum(m.floor_pages for m in models)
    if promised <= num_pages:
        return
    floors = " + ".join(f"{human(m.floor_pages * page)} ({m.name})" for m in models if m.floor_pages)
    raise PlanError(
        f"{facts.name}: beyond the weights, the floors guarantee {floors} of KV cache, but "
        f"{human(num_pages * page)} are left of the budget of {human(facts.budget_bytes)} after "
        f"weights, workspace and slack: lower `memory:` of these models by "
        f"{at_least((promised - num_pages) * page)} in all, or {_more_card((promised - num_pages) * page)}"
    )


def _check_longest_request(
    facts: CardFacts, need: ModelNeeds, model: ModelPlan, num_pages: int, page: int
) -> None:
    if need.block_bytes is None or model.kv_tokens_ceiling >= need.max_model_len:
        return
    pages = -(-need.max_model_len // (model.blocks_per_page * need.block_size))
    if pages <= num_pages:
        remedy = f"raise its `burst:` to at least {at_least(need.weight_bytes + pages * page)}"
    else:
        remedy = _more_card((pages - num_pages) * page)
    fits = f"set `max_model_len:` to at most {model.kv_tokens_ceiling} or " if model.kv_tokens_ceiling else ""
    raise PlanError(
        f"{need.name}: one request of max_model_len {need.max_model_len} needs {pages} pages of "
        f"{human(page)}, but beyond its weights of {human(need.weight_bytes)} it can have "
        f"{model.ceiling_pages} ({model.kv_tokens_ceiling} tokens) on {facts.name}: {fits}{remedy}"
    )


def _more_card(arena_bytes: int) -> str:
    """What to do for so many more bytes of arena: slack takes its share of them."""
    budget = arena_bytes * SLACK_SHARE // (SLACK_SHARE - 1) + 1
    return f"raise the card's `memory:` by at least {at_least(budget)}"


def _notes(models: Sequence[ModelPlan]) -> list[str]:
    return [
        f"{m.name}: {m.kv_tokens_floor} tokens of KV cache are guaranteed; a request of max_model_len "
        f"{m.max_model_len} needs borrowed memory"
        for m in models
        if m.block_bytes is not None and m.kv_tokens_floor < m.max_model_len
    ]
