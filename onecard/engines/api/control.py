"""What an operator may do to a running node, and the live ledger that shows what it did."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from onecard.engines.api.node import ModelState

SleepLevel = Literal[1, 2]
"""1: weights are kept in host memory (pinned, on a GPU); 2: they are dropped and read again on waking."""


@dataclass(frozen=True)
class ModelLedger:
    """One model's part of a card. Pages are the card's; `borrowed` are those above the floor.

    `home_pages` hold (or, of a sleeping model, would hold) its weights. `claimed_pages` of them are its own
    now: all while it is awake or falling asleep, and once it may come back; none while it sleeps, when they
    are lent like any others. `host_bytes`: weights kept in host memory while it sleeps.
    """

    name: str
    state: ModelState
    home_first_page: int
    home_pages: int
    claimed_pages: int
    owned_pages: int
    active_pages: int
    cached_pages: int
    idle_pages: int
    floor_pages: int
    ceiling_pages: int
    borrowed_pages: int
    demand_pages: int
    weight_bytes: int
    host_bytes: int


@dataclass(frozen=True)
class CardLedger:
    """A card's arena, page by page: `num_pages = free + claimed homes + what the models own`.

    `recalls` counts pages taken back from a model that had them on loan or cached in them, `preemptions`
    sequences that gave up their blocks, by cause ("memory": the model's own, "floor": another model wanted
    its floor, "wake": a model woke up).
    """

    card: str
    page_bytes: int
    num_pages: int
    free_pages: int
    models: tuple[ModelLedger, ...]
    recalls: dict[str, int]
    preemptions: dict[str, int]


@dataclass(frozen=True)
class ReloadReport:
    """What a changed registry changed, by model name; `notes` say what takes effect only with a restart."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class ModelControl(Protocol):
    """All of it runs on the event loop. Unknown names raise `ModelNotFoundError`.

    Names may be aliases. Calls for one model wait for each other.
    """

    async def sleep(self, name: str, level: SleepLevel = 1) -> SleepLevel:
        """Once its running requests have finished, give the model's memory away; new requests wake it.

        Returns the level at which it sleeps: 2 also where host memory can't hold a copy. Sleeping already:
        level 2 after level 1 drops the host copy; level 1 after level 2 leaves it at 2. Raises
        `InvalidRequestError` for a model that is `pinned`.
        """
        ...

    async def wake(self, name: str) -> None:
        """Returns when the model serves again. Raises `ModelUnavailableError` where it gets no memory, or not
        within the registry's `server.wake_timeout`."""
        ...

    def is_sleeping(self, name: str) -> bool:
        """From when its last requests are finished and its memory is given away until it serves again."""
        ...

    def ledger(self) -> Sequence[CardLedger]:
        """A look from the event loop's thread: for people and metrics, not for decisions."""
        ...


class NodeControl(ModelControl, Protocol):
    """With the registry file behind it."""

    async def reload(self) -> ReloadReport:
        """Read the registry file again, check it, apply it without dropping a request.

        Raises `InvalidRegistryError` with what is wrong; then nothing has changed.
        """
        ...
