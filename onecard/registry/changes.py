"""What a changed registry changes, and what a running server can do about it. Pure: specs in, specs out.

A running server keeps its cards' memory and its socket; models come and go, and most of what is said of a
model is a number that the engines read anew. `compare` names the differences, `effects_of` says what each
asks for, and `in_effect` is the registry that can be applied without a restart.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from onecard.registry.keys import Effect
from onecard.registry.shape import is_spec, keys_of
from onecard.registry.spec import CardSpec, ModelSpec, Registry, RegistryError, ServerSpec

Part = TypeVar("Part", CardSpec, ServerSpec)


def effects_of(spec: type) -> dict[str, Effect]:
    """What a change of each key asks for, by key paths such as `engine.dtype`."""
    effects: dict[str, Effect] = {}
    for name, key in keys_of(spec).items():
        if key.info.effect is not None:
            effects[name] = key.info.effect
        elif is_spec(key.hint):
            effects |= {f"{name}.{inner}": effect for inner, effect in effects_of(key.hint).items()}
    return effects


@dataclass(frozen=True)
class ModelChange:
    """A model that both registries have. `fields` are key paths, such as `memory` or `engine.dtype`."""

    name: str
    fields: tuple[str, ...]

    @property
    def effect(self) -> Effect:
        """The most that one of the fields asks for."""
        weakest_first: tuple[Effect, ...] = ("live", "rebuild", "replace")
        return max((effects_of(ModelSpec)[field] for field in self.fields), key=weakest_first.index)


@dataclass(frozen=True)
class Changes:
    """The differences of two registries. Models are known by their names, cards likewise.

    `card_fields` are `card0.memory` for a changed key and `card0` for a card that only one of them has.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[ModelChange, ...] = ()
    server_fields: tuple[str, ...] = ()
    card_fields: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self != Changes()

    def lines(self) -> list[str]:
        """One line each for people: `model chat: memory, burst`."""
        lines = [f"model {name}: added" for name in self.added]
        lines += [f"model {name}: removed" for name in self.removed]
        lines += [f"model {change.name}: {', '.join(change.fields)}" for change in self.changed]
        lines += [f"server.{field}" for field in self.server_fields]
        return lines + [f"card {field}" for field in self.card_fields]


def compare(old: Registry, new: Registry) -> Changes:
    """How `new` differs from `old`. The order of models and cards doesn't count, nor does the file's path."""
    before = {model.name: _placed(old, model) for model in old.models}
    after = {model.name: _placed(new, model) for model in new.models}
    changes = [
        ModelChange(name, tuple(differing(before[name], model)))
        for name, model in after.items()
        if name in before
    ]
    return Changes(
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        changed=tuple(change for change in changes if change.fields),
        server_fields=tuple(differing(old.server, new.server)),
        card_fields=tuple(_card_fields(old, new)),
    )


def in_effect(running: Registry, new: Registry) -> Registry:
    """`new` with whatever needs a restart as it is in `running`: what a running server can become.

    Every model of the result names its card. Raises RegistryError for a model on a card that `running`
    does not have, because nothing short of a restart can serve it.
    """
    kept = {card.name: card for card in running.cards}
    for model in new.models:
        card = new.card_of(model).name
        if card not in kept:
            raise RegistryError(
                f"the model `{model.name}` is on the card `{card}`, which the running server doesn't have; "
                f"restart it, or put the model on one of {', '.join(kept)}"
            )
    wanted = {card.name: card for card in new.cards}
    return Registry(
        server=_live_part(running.server, new.server),
        cards=tuple(_live_part(card, wanted.get(card.name, card)) for card in running.cards),
        models=tuple(_placed(new, model) for model in new.models),
        path=new.path,
    )


def needs_restart(running: Registry, new: Registry) -> tuple[str, ...]:
    """A sentence for each difference that `in_effect` leaves out. Raises RegistryError as it does."""
    left_out = compare(in_effect(running, new), new).lines()
    return tuple(f"{what} changed: it takes effect when the server is started again" for what in left_out)


def differing(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    """The key paths at which two specs of one type differ."""
    spec: type = type(old)
    for key in keys_of(spec).values():
        ours, theirs = getattr(old, key.name), getattr(new, key.name)
        if is_spec(key.hint):
            yield from differing(ours, theirs, f"{prefix}{key.name}.")
        elif ours != theirs:
            yield prefix + key.name


def _placed(registry: Registry, model: ModelSpec) -> ModelSpec:
    """`model` with the name of its card, which it may leave to the order of the cards."""
    return replace(model, card=registry.card_of(model).name)


def _card_fields(old: Registry, new: Registry) -> Iterator[str]:
    before = {card.name: card for card in old.cards}
    after = {card.name: card for card in new.cards}
    for name in before | after:
        if name in before and name in after:
            yield from differing(before[name], after[name], f"{name}.")
        else:
            yield name


def _live_part(old: Part, new: Part) -> Part:
    effects = effects_of(type(old))
    return replace(old, **{name: getattr(new, name) for name in effects if effects[name] == "live"})
