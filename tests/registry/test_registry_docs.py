"""docs/registry.md says what is true."""

import re
from collections.abc import Callable
from pathlib import Path

from onecard.registry.changes import effects_of
from onecard.registry.loader import load_registry
from onecard.registry.reference import with_tables
from onecard.registry.spec import CardSpec, ModelSpec, Registry, ServerSpec

PAGE = Path(__file__).parents[2] / "docs" / "registry.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_the_tables_are_current() -> None:
    assert with_tables(TEXT) == TEXT, "run: python -m onecard.registry.reference docs/registry.md"
    assert TEXT.count("\n| `max_num_batched_tokens` |") == 1


def test_the_example_is_a_registry(write: Callable[[str], Path]) -> None:
    example = re.search(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert example is not None
    registry: Registry = load_registry(write(example[1]))
    assert [model.name for model in registry.models] == ["smollm2", "minilm"]


def test_the_errors_are_real(mistakes: Callable[[str], list[str]]) -> None:
    shown = re.search(r"<!-- errors -->\n```yaml\n(.*?)```\n\n```\n(.*?)```\n<!-- end -->", TEXT, re.DOTALL)
    assert shown is not None
    said = [f"registry.yaml:{mistake}" for mistake in mistakes(shown[1])]
    assert shown[2].splitlines() == [f"{len(said)} problems in registry.yaml:", *said]


def test_every_key_stands_in_the_row_of_its_effect() -> None:
    rows = TEXT.partition("## Changes")[2].partition("## Editors")[0].splitlines()
    said = {
        row: set(re.findall(r"`(?:\w+\.)?(\w+)`", row.split("|")[1])) for row in rows if row.startswith("|")
    }
    models, server_and_cards = effects_of(ModelSpec), effects_of(ServerSpec) | effects_of(CardSpec)
    marks = [
        (models, "live", "next step"),
        (models, "rebuild", "made anew"),
        (models, "replace", "removed and added"),
        (server_and_cards, "live", "next request"),
        (server_and_cards, "restart", "started again"),
    ]
    for effects, effect, mark in marks:
        (keys,) = (keys for row, keys in said.items() if mark in row)
        wanted = {path.rpartition(".")[2] for path, of in effects.items() if of == effect} - {"name"}
        assert keys - {"name"} == wanted, f"docs/registry.md, Changes: {mark}"
