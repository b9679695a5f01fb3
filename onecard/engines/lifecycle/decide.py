"""What is decided of a card's models: whose turn it is, who sleeps for it, what moves next. Does none of it.

    decide(table, event) -> effects

An event is noted in the table; then rules fire, each time the first that applies, until none does. So what
happens hangs on how things are, not on the order of news, and whoever may go on does.
"""

from collections.abc import Callable, Iterable

from onecard.engines.api import SleepLevel
from onecard.engines.lifecycle.eviction import PinnedInTheWayError
from onecard.engines.lifecycle.table import Ask, Effect, Event, Table


def decide(table: Table, event: Event) -> list[Effect]:
    _note(table, event)
    effects: list[Effect] = []
    while (fired := _first(rule(table) for rule in RULES)) is not None:
        effects += fired
    return effects + _watches(table)


def reason(table: Table, name: str) -> str:
    """Why the model isn't awake yet: what it waits for itself, or whose turn it is, or anybody."""
    for ask in filter(None, (table.wake_of(name), table.turn, *table.asks)):
        if ask is table.moving and ask.kind == "wake":
            return f"the weights of `{ask.model}` are still on their way"
        busy = [ask.model] if ask.kind == "wake" and ask.model in table.departures else []
        if ask is table.turn:
            leaving = [n for n in table.sleepers(ask) if n in table.departures or table.serves(n)]
            busy = [n for n in leaving if not table.models[n].quiet]
        if busy:
            return f"`{busy[0]}` is still busy with requests it has accepted"
    return "models of its card are still changing places"


def _note(table: Table, event: Event) -> None:
    ask = event.ask
    if event.what == "moved" and isinstance(table.moving, str):
        del table.departures[table.moving]
        table.moving = None
    elif event.what == "moved" and isinstance(table.moving, Ask):
        moved = table.moving
        table.drop(moved)
        table.moving = moved if moved.num_waiting else None  # they go on before anything else moves
    elif event.what == "late":
        table.late = table.late or ask is table.turn
    elif event.what == "asked" and ask is not None:
        ask.num_waiting += 1
        if ask not in table.asks:
            table.asks.append(ask)
    elif event.what == "left" and ask is not None:
        ask.num_waiting -= 1
        if ask is table.moving and (ask.kind != "wake" or not (ask.num_waiting or ask in table.asks)):
            table.drop(ask)


def _first(fired: Iterable[list[Effect] | None]) -> list[Effect] | None:
    """What a rule, or an ask, comes to; None: it doesn't apply, or has to wait."""
    return next((effects for effects in fired if effects is not None), None)


def _end(table: Table, ask: Ask, why: str = "") -> list[Effect]:
    table.drop(ask)
    return [Effect("end", ask.model, ask, why=why)]


def _begin(table: Table, ask: Ask) -> list[Effect]:
    table.moving = ask
    return [Effect("begin", ask.model, ask)]


def _depart(table: Table, name: str, ask: Ask, level: SleepLevel | None) -> list[Effect]:
    table.departures[name] = level
    return [Effect("close", name, ask, level)]


def _end_what_is_in_vain(table: Table) -> list[Effect] | None:
    """Nobody waits for it; or the model that it is to wake is gone, or has failed."""
    for ask in table.asks:
        model = table.models.get(ask.model)
        broken = ask.kind == "wake" and (model is None or model.failed)
        if ask is not table.moving and (broken or not ask.num_waiting):
            return _end(table, ask)
    return None


def _obey_operators(table: Table) -> list[Effect] | None:
    """A wake that is under way comes first."""
    for ask in table.asks:
        leaving = ask.model in table.departures
        if ask.kind != "sleep" or (ask.begun and leaving):
            continue
        if not (ask.begun or leaving or table.is_settled(ask.model)):
            continue
        if ask.begun or not (leaving or table.serves(ask.model)):
            return _end(table, ask)
        ask.begun = True
        return [] if leaving else _depart(table, ask.model, ask, ask.level)
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
            return _depart(table, name, turn, None)
    return None


def _end_departures(table: Table) -> list[Effect] | None:
    """Of models that nobody wants to sleep any more, or that have failed, until they really leave."""
    wanted = {ask.model for ask in table.asks if ask.kind == "sleep" and ask.begun}
    for name in table.departures:
        model = table.models.get(name)
        broken = model is None or model.failed
        if name != table.moving and (broken or name not in wanted.union(table.sleepers(table.turn))):
            del table.departures[name]
            return [] if broken else [Effect("reopen", name)]
    return None


def _move_next(table: Table) -> list[Effect] | None:
    """Whoever can leave, then whoever has waited longest of those that can have the card."""
    if table.moving is not None:
        return None
    for name, level in table.departures.items():
        if table.models[name].quiet:
            table.moving = name
            return [Effect("move_out", name, level=level)]
    return _first(_consider(table, ask) for ask in table.asks)


RULES: tuple[Callable[[Table], list[Effect] | None], ...] = (
    _end_what_is_in_vain,
    _obey_operators,
    _make_room,
    _end_departures,
    _move_next,
)


def _consider(table: Table, ask: Ask) -> list[Effect] | None:
    """What comes of an ask while nobody has the card; None: it waits."""
    model = table.models.get(ask.model)
    if ask.kind == "sleep":
        return None
    if ask.kind == "vacate" and model is not None:
        free = table.is_settled(ask.model) and model.idle and model.quiet
        return _begin(table, ask) if free else None
    if ask.kind == "wake" and ask.model in table.departures:
        return None  # it leaves first, or doesn't after all
    if ask.kind == "wake" and model is not None and model.awake:
        return _end(table, ask)
    if ask.kind == "wake" and not ask.begun:
        ask.begun = True
        return [Effect("waking", ask.model)]
    return _go_in_turn(table, ask) if _needs_room(table, ask) else _begin(table, ask)


def _needs_room(table: Table, ask: Ask) -> bool:
    """A model that sleeps finds room for a larger floor when it wakes up."""
    model = table.models.get(ask.model)
    return ask.kind == "wake" or (model is not None and model.awake and ask.floor_pages > model.floor_pages)


def _go_in_turn(table: Table, ask: Ask) -> list[Effect] | None:
    """Who needs nobody's room passes whose turn it is, unless it would stand in its way."""
    try:
        crowded = bool(table.sleepers(ask))
    except PinnedInTheWayError as error:
        return _end(table, ask, str(error))
    if not crowded and (table.turn in (None, ask) or _may_pass(table, ask)):
        return _begin(table, ask)
    if table.turn is None:
        table.turn, table.late = ask, False
        return [Effect("patience", ask.model, ask)]
    return None


def _may_pass(table: Table, ask: Ask) -> bool:
    try:
        return table.sleepers(table.turn) == table.sleepers(table.turn, beside=ask)
    except PinnedInTheWayError:
        return False


def _watches(table: Table) -> list[Effect]:
    """Whose becoming quiet would change something."""
    names = [name for name in table.departures if name != table.moving]
    names += [ask.model for ask in table.asks if ask.kind == "vacate" and ask is not table.moving]
    names += [name for name in table.sleepers(table.turn) if table.serves(name)]
    unknown = [name for name in dict.fromkeys(names) if name in table.models and not table.models[name].quiet]
    return [Effect("watch", name) for name in unknown]
