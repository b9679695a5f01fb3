"""Shared fixtures: the repository and the real weights of the demo registry."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from onecard.registry.loader import load_registry
from onecard.registry.sources import fetch
from onecard.registry.spec import Registry

REPOSITORY = Path(__file__).resolve().parent.parent


class _NoProgress:
    def start(self, name: str, total_bytes: int | None) -> None: ...

    def advance(self, n: int) -> None: ...

    def done(self) -> None: ...


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def demo_registry() -> Registry:
    return load_registry(REPOSITORY / "configs" / "demo.yaml")


@pytest.fixture(scope="session")
def demo_paths(demo_registry: Registry) -> Iterator[dict[str, Path]]:
    """The demo's models, fetched into onecard's cache if they aren't there."""
    yield {model.name: fetch(model, _NoProgress()) for model in demo_registry.models}


@pytest.fixture(scope="session")
def smollm2_path(demo_paths: dict[str, Path]) -> Path:
    return demo_paths["smollm2"]


@pytest.fixture(scope="session")
def minilm_path(demo_paths: dict[str, Path]) -> Path:
    return demo_paths["minilm"]


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Contracts that others wrote, beside the checkout; not a part of the project."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the folder `shared` with others' contracts is not beside this checkout")
    return folder
