"""What is asked of a card and who has it; what happens to it, and what is to be done. Plain data."""

from dataclasses import dataclass, field, replace
from typing import Literal

from onecard.engines.api import SleepLevel
from onecard.engines.lifecycle.eviction import make_room
from onecard.engines.memory.homes import Resident


@dataclass(eq=False)
class Ask:
    """What somebody wants of a card, until it ends. A card is one asker's at a time.

    wake    the model awake; all who want that share one ask
    sleep   the model asleep, `level` deep
    grow    the card, once there is room for the model with `floor_pages`
    vacate  the card, once nobody uses the model, and nobody wakes it or puts it to sleep
    hold    the card

    Whoever asked for the card has it until it leaves. Once nobody waits for an ask any more it is given up,
    but for weights that are on their way.
    """

    kind: Literal["wake", "sleep", "grow", "vacate", "hold"]
    model: str = ""
    level: SleepLevel = 1
    floor_pages: int = 0
    num_waiting: int = 0
    begun: bool = False
    """The model is said to be waking up; or it is on its way out for this."""


@dataclass(eq=False)
class Departure:
    """A model on its way out: its gate is closed, and its requests finish. `level` None: its policy's."""

    model: str
    level: SleepLevel | None


@dataclass
class Table:
    """What is decided so far. `decide` alone changes it, but for `models`: as they are seen at an event."""

    num_pages: int
    models: dict[str, Resident] = field(default_factory=dict)
    asks: list[Ask] = field(default_factory=list)
    """In order of arrival."""
    departures: dict[str, Departure] = field(default_factory=dict)
    moving: Ask | Departure | None = None
    """Who has the card."""
    turn: Ask | None = None
    """For whom others are put to sleep."""
    late: bool = False
    """They have had time to become idle by themselves."""

    @property
    def at_rest(self) -> bool:
        return not (self.asks or self.departures)

    def wake_of(self, name: str) -> Ask | None:
        return next((ask for ask in self.asks if ask.kind == "wake" and ask.model == name), None)

    def is_settled(self, name: str) -> bool:
        """Nobody wakes the model or puts it to sleep."""
        return self.wake_of(name) is None and name not in self.departures

    def serves(self, name: str) -> bool:
        """Its gate is open."""
        model, moving = self.models.get(name), self.moving
        changing = isinstance(moving, Ask) and moving.kind in ("wake", "vacate") and moving.model == name
        return model is not None and model.awake and not (model.failed or changing or name in self.departures)

    def sleepers(self, ask: Ask, beside: Ask | None = None) -> list[str]:
        """Who has to leave for it, those that leave anyway first; also `beside` what another asks for. Raises
        `PinnedInTheWayError`."""
        models = {
            model.name: replace(model, idle=True, last_used=0.0) if model.name in self.departures else model
            for model in self.models.values()
        }
        for one in (ask, beside):
            if one is not None:
                model = models[one.model]
                floor = max(model.floor_pages, one.floor_pages)
                models[one.model] = replace(model, awake=model.awake or one is beside, floor_pages=floor)
        return make_room(models.values(), ask.model, self.num_pages)

    def drop(self, ask: Ask) -> None:
        if ask in self.asks:
            self.asks.remove(ask)
        self.turn = None if self.turn is ask else self.turn
        self.moving = None if self.moving is ask else self.moving


# --- events -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """Somebody waits for it."""

    ask: Ask


@dataclass(frozen=True)
class Left:
    """One of those doesn't any more, or is done with the card."""

    ask: Ask


@dataclass(frozen=True)
class Moved:
    """The model that was on its way in or out is there, or couldn't be brought there."""


@dataclass(frozen=True)
class Late:
    """The patience that was asked for has run out."""

    ask: Ask


@dataclass(frozen=True)
class Changed:
    """A model is to be looked at again: it has become idle, has failed, has come or gone."""


Event = Asked | Left | Moved | Late | Changed


# --- effects ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Close:
    """New requests wait from now on. `newcomer`: whose room it makes; empty: an operator's wish."""

    departure: Departure
    newcomer: str = ""


@dataclass(frozen=True)
class Reopen:
    """Nobody wants the model to sleep any more."""

    model: str


@dataclass(frozen=True)
class MoveOut:
    """`Moved` follows."""

    departure: Departure


@dataclass(frozen=True)
class Begin:
    """The card is the asker's. A wake's weights move in; `Moved` follows."""

    ask: Ask


@dataclass(frozen=True)
class End:
    """Nothing more comes of it: it has what it wants, is given up, or is refused for `why`."""

    ask: Ask
    why: str = ""


@dataclass(frozen=True)
class Waking:
    """That is the model's state from now on."""

    model: str


@dataclass(frozen=True)
class BePatient:
    """`Late` follows."""

    ask: Ask


@dataclass(frozen=True)
class Watch:
    """`Changed` follows once the model is `quiet`."""

    model: str


Effect = Close | Reopen | MoveOut | Begin | End | Waking | BePatient | Watch
