"""What is asked of a card and who has it; what happens to it, and what is to be done. Plain data."""

from dataclasses import dataclass, field, replace
from typing import Literal

from onecard.engines.api import EngineError, SleepLevel
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

    Whoever asked for the card has it until it leaves. An ask that nobody waits for any more is given up, but
    for weights that are on their way.
    """

    kind: Literal["wake", "sleep", "grow", "vacate", "hold"]
    model: str = ""
    level: SleepLevel = 1
    floor_pages: int = 0
    gone: EngineError | None = None
    """What those hear that come to a model once it is vacated."""
    num_waiting: int = 0
    begun: bool = False
    """The model is said to be waking up; or it is on its way out for this."""


@dataclass(frozen=True)
class Event:
    """asked    somebody waits for the ask
    left     one of those doesn't any more, or is done with the card
    late     the ask has been patient
    moved    the model that was on its way in or out is there, or couldn't be brought there
    changed  a model is to be looked at again: it has become quiet, has failed, has come or gone
    """

    what: Literal["asked", "left", "late", "moved", "changed"]
    ask: Ask | None = None


@dataclass(frozen=True)
class Effect:
    """Of a model, `ask` says what for. None of an ask:
    close     new requests wait from now on
    reopen    nobody wants the model to sleep any more
    move_out  its weights leave, `level` deep, None: as its policy says; `moved` follows
    waking    that is its state
    watch     `changed` follows once it is quiet
    Of an ask:
    begin     the card is the asker's; for a wake the weights move in, and `moved` follows
    end       it has what it wants, is given up, or is refused for `why`
    patience  `late` follows
    """

    do: Literal["close", "reopen", "move_out", "waking", "watch", "begin", "end", "patience"]
    model: str
    ask: Ask | None = None
    level: SleepLevel | None = None
    why: str = ""


@dataclass
class Table:
    """What is decided so far. `decide` alone changes it, but for `models`: as they are seen at an event."""

    num_pages: int
    models: dict[str, Resident] = field(default_factory=dict)
    asks: list[Ask] = field(default_factory=list)
    """In order of arrival."""
    departures: dict[str, SleepLevel | None] = field(default_factory=dict)
    """Models on their way out: their gates are closed, and their requests finish."""
    moving: Ask | str | None = None
    """Who has the card: whoever asked for it, or the model that leaves."""
    turn: Ask | None = None
    """For whom others are put to sleep."""
    late: bool = False
    """They have had time to become idle by themselves."""

    @property
    def at_rest(self) -> bool:
        return not (self.asks or self.departures or self.moving)

    def wake_of(self, name: str) -> Ask | None:
        return next((ask for ask in self.asks if ask.kind == "wake" and ask.model == name), None)

    def is_settled(self, name: str) -> bool:
        """Nobody wakes the model or puts it to sleep."""
        return self.wake_of(name) is None and not self._has_card(name, "wake") and name not in self.departures

    def serves(self, name: str) -> bool:
        """Its gate is open, to whoever comes now."""
        model = self.models.get(name)
        if model is None or not model.awake or model.failed or name in self.departures:
            return False
        return not (self._has_card(name, "wake") or self._has_card(name, "vacate"))

    def _has_card(self, name: str, kind: str) -> bool:
        moving = self.moving
        return isinstance(moving, Ask) and (moving.model, moving.kind) == (name, kind)

    def sleepers(self, ask: Ask | None, beside: Ask | None = None) -> list[str]:
        """Who has to leave for it, those that leave anyway first; also `beside` what another asks for. Raises
        `PinnedInTheWayError`."""
        if ask is None or ask is self.moving:
            return []
        models = dict(self.models)
        for name in self.departures.keys() & models.keys():
            models[name] = replace(models[name], idle=True, last_used=0.0)
        for one in filter(None, (ask, beside)):
            floor = max(models[one.model].floor_pages, one.floor_pages)
            models[one.model] = replace(models[one.model], floor_pages=floor)
        if beside is not None:
            models[beside.model] = replace(models[beside.model], awake=True)
        return make_room(models.values(), ask.model, self.num_pages)

    def drop(self, ask: Ask) -> None:
        self.asks = [other for other in self.asks if other is not ask]
        self.turn = None if self.turn is ask else self.turn
        self.moving = None if self.moving is ask else self.moving
