"""What is decided of a card's models: whose turn it is, who sleeps for it, what moves next. Does none of it.

    decide(table, event) -> effects

An event is noted in the table; then rules fire, each time the first that applies, until none does. So what
happens hangs on how things are, not on the order of news, and whoever may go on does.
"""

from collections.abc import Callable

from onecard.engines.lifecycle.eviction import PinnedInTheWayError
from onecard.engines.lifecycle.table import (
    Ask,
    Asked,
    Begin,
    BePatient,
    Changed,
    Close,
    Departure,
    Effect,
    End,
    Event,
    Late,
    Left,
    Moved,
    MoveOut,
    Reopen,
    Table,
    Waking,
    Watch,
)
from onecard.engines.memory.homes import Resident


def decide(table: Table, event: Event) -> list[Effect]:
    _note(table, event)
    effects: list[Effect] = []
    while (fired := _first(table)) is not None:
        effects += fired
    return effects + _watches(table)


def reason(table: Table, name: str) -> str:
    """Why the model isn't awake yet: what it waits for itself, or whose turn it is, or anybody."""
    for ask in (table.wake_of(name), table.turn, *table.asks):
        if ask is not None and (why := _hindrance(table, ask)):
            return why
    return "models of its card are still changing places"


def _note(table: Table, event: Event) -> None:
    match event:
        case Asked(ask):
            ask.num_waiting += 1
            if ask not in table.asks:
                table.asks.append(ask)
        case Left(ask):
            ask.num_waiting -= 1
            if ask is table.moving and ask.kind != "wake":
                table.drop(ask)
        case Moved():
            if isinstance(table.moving, Departure):
                del table.departures[table.moving.model]
                table.moving = None
            elif table.moving is not None:
                table.drop(table.moving)
        case Late(ask):
            table.late = table.late or ask is table.turn
        case Changed():
            pass


def _first(table: Table) -> list[Effect] | None:
    """What the first rule that applies comes to; None: none does."""
    fired = (rule(table) for rule in RULES)
    return next((effects for effects in fired if effects is not None), None)


def _end(table: Table, ask: Ask, why: str = "") -> list[Effect]:
    table.drop(ask)
    return [End(ask, why)]


def _begin(table: Table, ask: Ask) -> list[Effect]:
    table.moving = ask
    return [Begin(ask)]


def _depart(table: Table, departure: Departure, newcomer: str = "") -> list[Effect]:
    table.departures[departure.model] = departure
    return [Close(departure, newcomer)]


def _end_what_is_in_vain(table: Table) -> list[Effect] | None:
    """Nobody waits for it; or the model is gone, or has failed."""
    for ask in table.asks:
        model = table.models.get(ask.model)
        broken = ask.kind == "wake" and (model is None or model.failed)
        if ask is not table.moving and (broken or not ask.num_waiting):
            return _end(table, ask)
    return None


def _do_as_operators_ask(table: Table) -> list[Effect] | None:
    """A wake that is under way comes first."""
    for ask in table.asks:
        leaving = ask.model in table.departures
        if ask.kind != "sleep" or (ask.begun and leaving):
            continue
        if leaving:
            ask.begun = True
            return []
        if not ask.begun and table.wake_of(ask.model):
            continue
        if ask.begun or not table.serves(ask.model):
            return _end(table, ask)
        ask.begun = True
        return _depart(table, Departure(ask.model, ask.level))
    return None


def _make_room(table: Table) -> list[Effect] | None:
    """For whose turn it is. Those that are busy get some time to become idle by themselves."""
    turn = table.turn
    if turn is None or turn is table.moving:
        return None
    if not _needs_room(table, turn):
        table.turn = None
        return []
    try:
        sleepers = table.sleepers(turn)
    except PinnedInTheWayError as error:
        return _end(table, turn, str(error))
    for name in sleepers:
        if table.serves(name) and (table.late or table.models[name].idle):
            return _depart(table, Departure(name, None), turn.model)
    return None


def _end_departures(table: Table) -> list[Effect] | None:
    """Of models that nobody wants to sleep any more, or that have failed, until they really leave."""
    wanted = {ask.model for ask in table.asks if ask.kind == "sleep" and ask.begun}
    if table.turn is not None and table.turn is not table.moving:
        wanted.update(table.sleepers(table.turn))
    for name, departure in table.departures.items():
        model = table.models.get(name)
        broken = model is None or model.failed
        if departure is not table.moving and (broken or name not in wanted):
            del table.departures[name]
            return [] if broken else [Reopen(name)]
    return None


def _move_next(table: Table) -> list[Effect] | None:
    """Whoever can leave, then whoever has waited longest of those that can have the card."""
    if table.moving is not None:
        return None
    for departure in table.departures.values():
        if table.models[departure.model].quiet:
            table.moving = departure
            return [MoveOut(departure)]
    considered = (_consider(table, ask) for ask in table.asks)
    return next((effects for effects in considered if effects is not None), None)


RULES: tuple[Callable[[Table], list[Effect] | None], ...] = (
    _end_what_is_in_vain,
    _do_as_operators_ask,
    _make_room,
    _end_departures,
    _move_next,
)


def _consider(table: Table, ask: Ask) -> list[Effect] | None:
    """What comes of an ask while nobody has the card; None: it waits."""
    model = table.models.get(ask.model)
    match ask.kind:
        case "sleep":
            return None
        case "vacate" if model is not None:
            free = table.is_settled(ask.model) and model.idle and model.quiet
            return _begin(table, ask) if free else None
        case "grow" if _needs_room(table, ask):
            return _go_in_turn(table, ask)
        case "wake" if model is not None:
            return _consider_wake(table, ask, model)
    return _begin(table, ask)


def _consider_wake(table: Table, ask: Ask, model: Resident) -> list[Effect] | None:
    if ask.model in table.departures:
        return None  # it leaves first, or doesn't after all
    if model.awake:
        return _end(table, ask)
    if not ask.begun:
        ask.begun = True
        return [Waking(ask.model)]
    return _go_in_turn(table, ask)


def _needs_room(table: Table, ask: Ask) -> bool:
    """A model that sleeps finds room for a larger floor when it wakes up."""
    model = table.models.get(ask.model)
    grows = model is not None and model.awake and not model.failed and ask.floor_pages > model.floor_pages
    return grows or ask.kind == "wake"


def _go_in_turn(table: Table, ask: Ask) -> list[Effect] | None:
    """Who needs nobody's room passes whose turn it is, unless it would stand in its way."""
    try:
        crowded = bool(table.sleepers(ask))
    except PinnedInTheWayError as error:
        return _end(table, ask, str(error))
    turn = table.turn
    if not crowded and (turn is None or turn is ask or _may_pass(table, ask, turn)):
        return _begin(table, ask)
    if turn is None:
        table.turn, table.late = ask, False
        return [BePatient(ask)]
    return None


def _may_pass(table: Table, ask: Ask, turn: Ask) -> bool:
    try:
        return table.sleepers(turn) == table.sleepers(turn, beside=ask)
    except PinnedInTheWayError:
        return False


def _watches(table: Table) -> list[Effect]:
    """Whose becoming quiet would change something."""
    names = [departure.model for departure in table.departures.values() if departure is not table.moving]
    names += [ask.model for ask in table.asks if ask.kind == "vacate" and ask is not table.moving]
    if table.turn is not None and table.turn is not table.moving:
        names += [name for name in table.sleepers(table.turn) if table.serves(name)]
    unknown = [name for name in dict.fromkeys(names) if name in table.models and not table.models[name].quiet]
    return [Watch(name) for name in unknown]


def _hindrance(table: Table, ask: Ask) -> str:
    if ask is table.moving:
        return f"the weights of `{ask.model}` are still on their way" if ask.kind == "wake" else ""
    busy = [ask.model] if ask.kind == "wake" and ask.model in table.departures else []
    if ask is table.turn:
        leaving = [n for n in table.sleepers(ask) if n in table.departures or table.serves(n)]
        busy = [name for name in leaving if not table.models[name].quiet]
    return f"`{busy[0]}` is still busy with requests it has accepted" if busy else ""
