"""Shared fixtures: the repository, the real weights of the demo registry, and nodes that serve them."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from recording_stats import RecordingStats

from onecard.engines.node.factory import start_node
from onecard.registry.loader import load_registry
from onecard.registry.sources import fetch
from onecard.registry.sources.base import NoProgress
from onecard.registry.spec import MemoryAmount, Registry

T = TypeVar("T")
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def demo_registry() -> Registry:
    return load_registry(REPOSITORY / "configs" / "demo.yaml")


@pytest.fixture(scope="session")
def demo_paths(demo_registry: Registry) -> dict[str, Path]:
    """The demo's models, fetched into onecard's cache if they aren't there."""
    return {model.name: fetch(model, NoProgress()) for model in demo_registry.models}


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


class LiveNode:
    """A real node on an event loop of its own thread; `call` runs a coroutine there and waits for it."""

    def __init__(self, registry: Registry, paths: dict[str, Path], warm_up: bool = False):
        self.stats = RecordingStats()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.node = self.call(start_node(registry, paths, self.stats, warm_up=warm_up))

    def call(self, coroutine: Coroutine[Any, Any, T], timeout: float = 240) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout)

    def wait_idle(self) -> None:
        """Until nothing runs or waits."""
        self.call(self.node.drained())

    def on_loop(self, engine: Any, function: Callable[..., T], *arguments: Any) -> T:
        """Run `function` where the engine's pools may be touched: on its device loop's thread."""
        result: Future[T] = Future()

        def call() -> None:
            try:
                result.set_result(function(*arguments))
            except BaseException as error:
                result.set_exception(error)

        engine._loop.post(call)
        return result.result(60)

    def close(self) -> None:
        self.call(self.node.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


@pytest.fixture(scope="session")
def live_node(
    demo_registry: Registry, demo_paths: dict[str, Path]
) -> Callable[..., AbstractContextManager[LiveNode]]:
    """Opens the demo registry as a node, with other engine arguments or card memory where given."""

    @contextmanager
    def open_node(memory: int = 1 << 30, **engine: Any) -> Iterator[LiveNode]:
        card = replace(demo_registry.cards[0], device="cpu", memory=MemoryAmount(nbytes=memory))
        models = tuple(
            replace(model, memory=MemoryAmount(fraction=0.0), engine=replace(model.engine, **engine))
            if model.kind == "llm"
            else replace(model, memory=MemoryAmount(fraction=0.0))
            for model in demo_registry.models
        )
        node = LiveNode(replace(demo_registry, cards=(card,), models=models), demo_paths)
        try:
            yield node
        finally:
            node.close()

    return open_node


@pytest.fixture(scope="session")
def open_live_node() -> Callable[..., AbstractContextManager[LiveNode]]:
    """Opens any registry as a node, given its models' files; steps run before the first request if asked."""

    @contextmanager
    def open_node(registry: Registry, paths: dict[str, Path], warm_up: bool = False) -> Iterator[LiveNode]:
        node = LiveNode(registry, paths, warm_up)
        try:
            yield node
        finally:
            node.close()

    return open_node


@pytest.fixture(scope="session")
def demo_node(live_node: Callable[..., AbstractContextManager[LiveNode]]) -> Iterator[LiveNode]:
    """The demo in full precision, shared by all tests that leave it as they found it."""
    with live_node(dtype="float32", max_model_len=2048) as node:
        yield node
