"""What a changed registry changes, and what a running server can do about it. Pure: specs in, specs out.

A running server keeps its cards' memory and its socket; models come and go, and most of what is said of a
model is a number that the engines read anew. `compare` names the differences, `effect` says what each asks
for, and `in_effect` is the registry that can be applied without a restart.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from onecard.registry.shape import is_spec, keys_of
from onecard.registry.spec import CardSpec, ModelSpec, Registry, RegistryError, ServerSpec

Effect = Literal["live", "rebuild", "replace", "restart"]
"""What a changed key asks for: `live`: numbers change while requests run. `rebuild`: the engine is made anew
around the weights it has. `replace`: another model, so the old one goes and the new one comes. `restart`:
the server keeps what it has until it is started again."""

Part = TypeVar("Part", CardSpec, ServerSpec)

MODEL_EFFECTS: Mapping[str, Effect] = {
    "name": "replace",
    "kind": "replace",
    "source": "replace",
    "sha256": "replace",
    "card": "replace",
    "memory": "live",
    "burst": "live",
    "weight": "live",
    "priority": "live",
    "ttl": "live",
    "sleep_level": "live",
    "pinned": "live",
    "preload": "live",
    "aliases": "live",
    "engine.max_model_len": "replace",
    "engine.max_num_seqs": "live",
    "engine.max_num_batched_tokens": "live",
    "engine.dtype": "replace",
    "engine.block_size": "replace",
    "engine.enable_prefix_caching": "rebuild",
    "engine.long_prefill_token_threshold": "live",
    "engine.enforce_eager": "rebuild",
    "engine.cudagraph_capture_sizes": "rebuild",
    "engine.seed": "rebuild",
    "engine.tokenizer": "rebuild",
    "engine.chat_template": "rebuild",
}
CARD_EFFECTS: Mapping[str, Effect] = {
    "name": "restart",
    "device": "restart",
    "memory": "restart",
    "page_size": "restart",
    "quantum": "live",
}
SERVER_EFFECTS: Mapping[str, Effect] = {
    "host": "restart",
    "port": "restart",
    "api_keys": "live",
    "admin_key": "live",
    "allowed_origins": "live",
    "max_queued_requests": "live",
    "max_body_bytes": "restart",
    "drain_timeout": "live",
    "wake_timeout": "live",
}


@dataclass(frozen=True)
class ModelChange:
    """A model that both registries have. `fields` are key paths, such as `memory` or `engine.dtype`."""

    name: str
    fields: tuple[str, ...]

    @property
    def effect(self) -> Effect:
        """The most that one of the fields asks for."""
        effects = {MODEL_EFFECTS[field] for field in self.fields}
        most: tuple[Effect, ...] = ("replace", "rebuild", "live")
        return next(effect for effect in most if effect in effects)


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
    cards = tuple(_live_part(card, wanted.get(card.name, card), CARD_EFFECTS) for card in running.cards)
    return Registry(
        server=_live_part(running.server, new.server, SERVER_EFFECTS),
        cards=cards,
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


def _live_part(old: Part, new: Part, effects: Mapping[str, Effect]) -> Part:
    live = {field: getattr(new, field) for field, effect in effects.items() if effect == "live"}
    return replace(old, **live)
