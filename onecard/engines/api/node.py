"""Everything that is being served, and how it is doing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from onecard.engines.api.health import CardHealth
from onecard.engines.api.model import ModelInfo, Tokenizing

ModelState = Literal["loading", "ready", "falling_asleep", "asleep", "waking", "unloaded", "failed"]
"""`falling_asleep`: new requests wait already, those that came before are finished first."""


@dataclass(frozen=True)
class CacheConfig:
    """A model's KV cache: at most `num_blocks` of `block_size` tokens."""

    block_size: int
    num_blocks: int
    prefix_caching: bool


@dataclass(frozen=True)
class ModelStatus:
    """One row of `onecard ps`. Bytes are from the ledger; `cache` is None for a model without KV cache."""

    name: str
    kind: str
    card: str
    state: ModelState
    weight_bytes: int
    kv_bytes_used: int
    kv_bytes_owned: int
    floor_bytes: int
    ceiling_bytes: int
    running: int
    waiting: int
    finished: int
    cache: CacheConfig | None = None


@dataclass(frozen=True)
class CardStatus:
    """A card's share of the ledger; `health` is what the card itself says, None before the first look."""

    name: str
    device: str
    total_bytes: int
    budget_bytes: int
    arena_bytes: int
    page_bytes: int
    pages_free: int
    pages_total: int
    health: CardHealth | None = None


@dataclass(frozen=True)
class NodeStatus:
    state: Literal["starting", "ready", "draining"]
    cards: tuple[CardStatus, ...]
    models: tuple[ModelStatus, ...]


class Node(Protocol):
    """Everything that is being served. Built by `engines.factory`, started and stopped by the gateway."""

    def models(self) -> Sequence[ModelInfo]: ...

    def engine(self, name: str) -> Tokenizing:
        """By name or alias; it has the Protocols of its `info.tasks`. Raises `ModelNotFoundError`."""
        ...

    def status(self) -> NodeStatus: ...

    def begin_drain(self) -> None:
        """From now on new requests raise `ShuttingDownError`; running ones finish."""
        ...

    async def drained(self) -> None:
        """Returns when nothing runs or waits."""
        ...

    async def stop(self) -> None: ...
