"""Engines on a card, with random weights of true shapes made on the spot.

`GPU_TESTS_DEVICE=cpu` runs the same tests, at tiny shapes, where there is no card: it shows that they work.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_helpers import DEVICE, Served

from onecard.engines.node.factory import plan_registry
from onecard.registry.spec import CardSpec, EngineSpec, MemoryAmount, ModelSpec, Registry

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))
ROOMY = (1 << 30) if DEVICE == "cpu" else 8 << 30


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.skipif(not DEVICE, reason="no CUDA card"))


@pytest.fixture(scope="session")
def shape() -> Callable[[str], str]:
    """The true shape's name on a card, a tiny one's in a dry run."""
    tiny = {"smollm2-135m": "tiny-llama", "qwen3-0.6b": "tiny-qwen3", "minilm": "tiny-bert"}
    return lambda name: tiny[name] if DEVICE == "cpu" else name


@pytest.fixture(scope="session")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, shape: Callable[[str], str]
) -> Callable[[str], Path]:
    """The folder of a random model in float32, written once."""
    from harness.random_models import write_model

    folders: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            write_model(shape(name), folders[name], torch.float32, DEVICE)
        return folders[name]

    return make


@pytest.fixture(scope="session")
def registry(checkpoint: Callable[[str], Path]) -> Callable[..., tuple[Registry, dict[str, Path]]]:
    """`registry({"model": "smollm2-135m"}, device, memory, dtypes, **engine)` and its models' folders."""

    def make(
        models: dict[str, str],
        device: str = DEVICE,
        memory: int = ROOMY,
        dtypes: dict[str, str] | None = None,
        **engine: Any,
    ) -> tuple[Registry, dict[str, Path]]:
        paths = {name: checkpoint(model) for name, model in models.items()}
        # A few graphs only: they are captured anew for every node.
        defaults = {
            "max_model_len": 512,
            "max_num_batched_tokens": 512,
            "cudagraph_capture_sizes": (1, 4, 16, 64),
        }
        settings = EngineSpec(**{**defaults, **engine})
        specs = tuple(
            ModelSpec(
                name=name,
                kind="embedding" if model == "minilm" else "llm",
                source=str(paths[name]),
                engine=replace(settings, dtype=(dtypes or {}).get(name, "float32")),  # type: ignore[arg-type]
            )
            for name, model in models.items()
        )
        card = CardSpec(device=device, memory=MemoryAmount(nbytes=memory))
        return Registry(cards=(card,), models=specs), paths

    return make


@pytest.fixture(scope="session")
def serve(registry: Any, open_live_node: Any) -> Callable[..., AbstractContextManager[Served]]:
    """The registry's arguments; `arena_tokens`: a card just large enough for that many tokens' K and V."""

    @contextmanager
    def start(
        models: dict[str, str],
        device: str = DEVICE,
        arena_tokens: int = 0,
        warm_up: bool = False,
        **settings: Any,
    ) -> Iterator[Served]:
        described, paths = registry(models, device, **settings)
        for _ in range(4 if arena_tokens else 0):  # the plan's slack shrinks with the budget
            plan = plan_registry(described, paths)[0]
            block_bytes = max(model.block_bytes or 0 for model in plan.models)
            arena = block_bytes * arena_tokens // described.models[0].engine.block_size
            homes = sum(model.home_pages for model in plan.models) * plan.page_bytes
            memory = plan.budget_bytes - plan.arena_bytes + homes + arena
            described, paths = registry(models, device, memory=memory, **settings)
        with open_live_node(described, paths, warm_up) as live:
            yield Served(live)

    return start
