"""Nodes whose models don't all fit: copies of the demo's language model, and its embedding model."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onecard.registry.spec import MemoryAmount, ModelSpec, Registry


@pytest.fixture(scope="session")
def card_of(
    open_live_node: Callable[..., Any], demo_registry: Registry, demo_paths: dict[str, Path]
) -> Callable[..., AbstractContextManager[Any]]:
    """`card_of(memory, a={...}, minilm={...})`: a card of so many bytes that serves these models, which run
    their first steps before requests with `warm_up=True`.

    Each model is the demo's of that name, or a copy of its language model, with the fields given.
    """

    def open_card(
        memory: int, warm_up: bool = False, **models: dict[str, Any]
    ) -> AbstractContextManager[Any]:
        card = replace(demo_registry.cards[0], device="cpu", memory=MemoryAmount(nbytes=memory))
        specs, paths = [], {}
        for name, fields in models.items():
            origin = "minilm" if name == "minilm" else "smollm2"
            specs.append(spec(demo_registry, origin, name, **fields))
            paths[name] = demo_paths[origin]
        return open_live_node(replace(demo_registry, cards=(card,), models=tuple(specs)), paths, warm_up)

    return open_card


def spec(registry: Registry, origin: str, name: str, **fields: Any) -> ModelSpec:
    model = next(model for model in registry.models if model.name == origin)
    engine = replace(model.engine, **{"max_model_len": 256, "max_num_seqs": 8, **fields.pop("engine", {})})
    floor = MemoryAmount(fraction=0.0)
    return replace(model, **{"name": name, "aliases": (), "engine": engine, "memory": floor, **fields})
