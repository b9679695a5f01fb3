"""What a changed registry changes: every key has an effect, and what needs a restart stays as it is."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onecard.registry.changes import (
    Changes,
    ModelChange,
    compare,
    differing,
    effects_of,
    in_effect,
    needs_restart,
)
from onecard.registry.keys import key
from onecard.registry.spec import (
    CardSpec,
    EngineSpec,
    MemoryAmount,
    ModelSpec,
    Registry,
    RegistryError,
    ServerSpec,
)

MODEL_EFFECTS, CARD_EFFECTS, SERVER_EFFECTS = map(effects_of, (ModelSpec, CardSpec, ServerSpec))

CHAT = ModelSpec("chat", source="hf:o/chat", aliases=("default",))
WORDS = ModelSpec("words", "embedding", source="hf:o/words", card="card1")
CARDS = (CardSpec(), CardSpec("card1", "cpu"))
OLD = Registry(ServerSpec(api_keys=("k",)), CARDS, (CHAT, WORDS), "a.yaml")


def all_fields(spec: type, prefix: str = "") -> set[str]:
    """The key paths of a spec, by its dataclass and not by what describes its keys."""
    paths: set[str] = set()
    for field in fields(spec):
        nested = is_dataclass(field.default) and not isinstance(field.default, MemoryAmount)
        paths |= all_fields(type(field.default), f"{field.name}.") if nested else {prefix + field.name}
    return paths


@pytest.mark.parametrize(
    ("spec", "effects"), [(ModelSpec, MODEL_EFFECTS), (CardSpec, CARD_EFFECTS), (ServerSpec, SERVER_EFFECTS)]
)
def test_every_key_has_an_effect(spec: type, effects: dict[str, str]) -> None:
    assert all_fields(spec) == effects.keys(), "say what a change of the key asks for"


def test_no_key_goes_without_an_effect() -> None:
    with pytest.raises(TypeError, match="effect"):
        key(1, "A key.", minimum=0)  # type: ignore[call-arg]


def other(value: Any) -> Any:
    """Another value than `value`."""
    if isinstance(value, MemoryAmount):
        return MemoryAmount(nbytes=1 << 30)
    if isinstance(value, bool):
        return not value
    return (7, "seven") if isinstance(value, tuple) else ("other" if isinstance(value, str) else 7)


def with_field(spec: Any, path: str) -> Any:
    name, _, inner = path.partition(".")
    value = getattr(spec, name)
    return replace(spec, **{name: with_field(value, inner) if inner else other(value)})


@pytest.mark.parametrize("path", sorted(MODEL_EFFECTS.keys() - {"name", "card"}))
def test_a_change_of_each_key_is_seen(path: str) -> None:
    changes = compare(OLD, replace(OLD, models=(with_field(CHAT, path), WORDS)))
    assert changes == Changes(changed=(ModelChange("chat", (path,)),))
    assert changes.changed[0].effect == MODEL_EFFECTS[path]
    assert changes.lines() == [f"model chat: {path}"]


@pytest.mark.parametrize("path", sorted(SERVER_EFFECTS))
def test_server_keys_stay_or_change(path: str) -> None:
    new = replace(OLD, server=with_field(OLD.server, path))
    live = SERVER_EFFECTS[path] == "live"
    assert compare(OLD, new) == Changes(server_fields=(path,))
    assert in_effect(OLD, new).server == (new.server if live else OLD.server)
    notes = needs_restart(OLD, new)
    assert notes == (
        () if live else (f"server.{path} changed: it takes effect when the server is started again",)
    )


@pytest.mark.parametrize("path", sorted(CARD_EFFECTS.keys() - {"name"}))
def test_card_keys_stay_or_change(path: str) -> None:
    new = replace(OLD, cards=(with_field(CARDS[0], path), CARDS[1]))
    live = CARD_EFFECTS[path] == "live"
    assert compare(OLD, new) == Changes(card_fields=(f"card0.{path}",))
    assert in_effect(OLD, new).cards == (new.cards if live else OLD.cards)
    assert len(needs_restart(OLD, new)) == (not live)


def test_models_come_and_go() -> None:
    new = replace(OLD, models=(WORDS, replace(CHAT, name="talk")))
    assert compare(OLD, new) == Changes(added=("talk",), removed=("chat",))
    assert compare(OLD, new).lines() == ["model talk: added", "model chat: removed"]


def test_the_most_that_is_asked_for_counts() -> None:
    assert ModelChange("m", ("memory", "aliases")).effect == "live"
    assert ModelChange("m", ("memory", "engine.tokenizer")).effect == "rebuild"
    assert ModelChange("m", ("engine.tokenizer", "source", "burst")).effect == "replace"


def test_a_card_named_or_left_out_is_the_same() -> None:
    assert not compare(OLD, replace(OLD, models=(replace(CHAT, card="card0"), WORDS)))
    moved = compare(OLD, replace(OLD, cards=CARDS[::-1]))
    assert moved == Changes(changed=(ModelChange("chat", ("card",)),)), "the first card is another one now"
    assert in_effect(OLD, replace(OLD, cards=CARDS[::-1])).find("chat") == replace(CHAT, card="card1")


def test_cards_come_and_go_with_a_restart() -> None:
    fewer = replace(OLD, cards=CARDS[:1], models=(CHAT,))
    assert compare(OLD, fewer).card_fields == ("card1",)
    assert in_effect(OLD, fewer).cards == CARDS
    assert needs_restart(OLD, fewer) == (
        "card card1 changed: it takes effect when the server is started again",
    )
    assert needs_restart(fewer, replace(fewer, cards=CARDS)) == needs_restart(OLD, fewer)
    with pytest.raises(
        RegistryError, match=r"`words` is on the card `card1`, which the running server doesn't"
    ):
        in_effect(fewer, OLD)


names = st.sampled_from(["a", "b", "c"])
models = st.builds(
    ModelSpec,
    name=names,
    card=st.sampled_from([None, "card0", "card1"]),
    priority=st.integers(-2, 2),
    pinned=st.booleans(),
    engine=st.builds(EngineSpec, seed=st.integers(0, 1), dtype=st.sampled_from(["auto", "float32"])),
)
cards = st.tuples(
    st.builds(CardSpec, quantum=st.sampled_from([None, 0.1]), page_size=st.sampled_from([None, 4096])),
    st.builds(CardSpec, name=st.just("card1"), quantum=st.sampled_from([None, 0.2])),
)
registries = st.builds(
    Registry,
    server=st.builds(ServerSpec, port=st.integers(1, 3), admin_key=names),
    cards=cards.flatmap(st.permutations).map(tuple),
    models=st.lists(models, unique_by=lambda model: model.name).map(tuple),
)


@given(registries, registries)
def test_what_holds_of_any_two(old: Registry, new: Registry) -> None:
    assert not compare(old, old)
    there, back = compare(old, new), compare(new, old)
    assert (set(there.added), set(there.removed)) == (set(back.removed), set(back.added))
    assert {change.name: change.fields for change in there.changed} == {
        change.name: change.fields for change in back.changed
    }
    became = in_effect(old, new)
    rest = compare(became, new)
    assert (rest.added, rest.removed, rest.changed) == ((), (), ()), "models become what the file says"
    assert in_effect(became, new) == became
    assert not [f for f in rest.server_fields if SERVER_EFFECTS[f] != "restart"]
    assert [*differing(old.server, became.server)] == [
        f for f in there.server_fields if SERVER_EFFECTS[f] == "live"
    ]
