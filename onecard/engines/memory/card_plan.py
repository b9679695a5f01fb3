"""What is asked of a card's memory, and what `plan.plan_card` decided: plain data."""

from dataclasses import asdict, dataclass
from typing import Any


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
    note: str = ""
    """What whoever wrote the registry should know of the budget."""


@dataclass(frozen=True)
class ModelNeeds:
    """What one model needs and may have, in bytes. `block_bytes` is None for a model without KV blocks.

    `home_bytes` of its weights lie in the arena; `packed_bytes` are held by libraries outside of it and
    booked in it. `floor` and `ceiling` cover weights and KV; floor 0 is no guarantee. `block_size` and
    `max_model_len` are tokens. `graph_bytes`: what its captured CUDA graphs hold. A model that is not
    `preload`ed starts asleep; a `pinned` one never sleeps.
    """

    name: str
    kind: str
    home_bytes: int
    packed_bytes: int
    workspace_bytes: int
    block_bytes: int | None
    block_size: int
    max_model_len: int
    floor: int
    ceiling: int
    pinned: bool = False
    preload: bool = True
    graph_bytes: int = 0

    @property
    def weight_bytes(self) -> int:
        return self.home_bytes + self.packed_bytes

    @property
    def awake_at_start(self) -> bool:
        return self.pinned or self.preload


@dataclass(frozen=True)
class ModelPlan:
    """One model's place on the card. Token counts are those that are sure to fit the pages.

    Pages of floor and ceiling are of KV; those of the home come on top.
    """

    name: str
    kind: str
    weight_bytes: int
    workspace_bytes: int
    graph_bytes: int
    block_bytes: int | None
    block_size: int
    blocks_per_page: int
    max_model_len: int
    awake_at_start: bool
    pinned: bool
    home_first_page: int
    home_pages: int
    floor_pages: int
    ceiling_pages: int
    kv_tokens_floor: int
    kv_tokens_ceiling: int
    waste: float
    """Share of the model's pages that is lost at page edges, 0..1."""

    @property
    def home(self) -> range:
        return range(self.home_first_page, self.home_first_page + self.home_pages)

    @property
    def longest_pages(self) -> int:
        """Pages of KV that a request of `max_model_len` takes."""
        if self.block_bytes is None:
            return 0
        return -(-self.max_model_len // (self.blocks_per_page * self.block_size))


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
    """Of all models, asleep or awake."""
    workspace_bytes: int
    graph_bytes: int
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

    @property
    def loanable_bytes(self) -> int:
        """What no home and no floor claims when serving begins: whoever has work gets it for KV."""
        claimed = sum(m.home_pages + m.floor_pages for m in self.models if m.awake_at_start)
        return self.arena_bytes - claimed * self.page_bytes

    def facts(self) -> CardFacts:
        """What was known of the card when the plan was made."""
        available = self.total_bytes - self.other_bytes
        return CardFacts(self.card, self.device, self.total_bytes, available, self.budget_bytes)

    def model(self, name: str) -> ModelPlan:
        return next(m for m in self.models if m.name == name)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "unused_bytes": self.unused_bytes, "loanable_bytes": self.loanable_bytes}
