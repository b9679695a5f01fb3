"""A manager on its own: a card of a few pages, with models none of which computes anything."""

import asyncio
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from onecard.engines.lifecycle.card_model import CardModel, Policy
from onecard.engines.lifecycle.manager import LifecycleManager
from onecard.engines.memory.arena import DeviceArena
from onecard.engines.memory.page_pool import PagePool
from onecard.engines.runtime.gate import Gate, WakeTimeout

PAGE = 4096
NUM_PAGES, HOME = 4, range(3)


class Loop:
    """A device loop that does at once what it is asked."""

    is_running = False

    def post(self, call: Callable[[], None]) -> None:
        self.is_running = True
        call()
        self.is_running = False

    def when_idle(self, has_requests: Callable[[], bool], tell: Callable[[], None]) -> None:
        """Goes round and round, as a loop with requests does."""

        def look() -> None:
            idle = not has_requests()
            event_loop = asyncio.get_running_loop()
            event_loop.call_soon(tell) if idle else event_loop.call_later(0.001, self.post, look)

        self.post(look)

    def deliver(self, deliveries: list[Any]) -> None: ...

    def add_engine(self, engine: Any) -> None: ...

    def remove_engine(self, name: str) -> None: ...


@dataclass
class Weights:
    """`may_load`: cleared, loading takes until it is set. `loaded`: how often it was."""

    home: range = HOME
    model: object | None = None
    host_bytes: int = 0
    loaded: int = 0
    weight_bytes: int = 3 * PAGE
    may_load: threading.Event = field(default_factory=threading.Event)

    def load(self, progress: object = None) -> None:
        assert self.may_load.wait(30)
        self.model = object()
        self.loaded += 1

    def restore(self, moment: object) -> None:
        self.load()
        self.host_bytes = 0

    def save(self) -> None:
        self.host_bytes = 1

    def drop(self) -> None:
        self.model, self.host_bytes = None, 0


class EngineHooks:
    """`busy`: it has requests."""

    def __init__(self) -> None:
        self.busy = False

    def has_requests(self) -> bool:
        return self.busy

    def move_in(self, model: object) -> Generator[None]:
        yield

    def move_out(self) -> None:
        assert not self.busy, "its requests come first"

    def forget(self) -> None: ...

    def close(self) -> None:
        assert not self.busy, "its requests come first"


class Engine:
    name, blocks = "engine", None

    def give_up(self, error: BaseException) -> list[Any]:
        return []


class SmallCard:
    """The first of its models is awake, and has room for itself alone if `homes` doesn't say where the models
    belong, in `NUM_PAGES` pages. `timeout` is that of all gates."""

    def __init__(self, *names: str, timeout: float = 60.0, loop: Any = None, **homes: range):
        self.timeout = WakeTimeout(timeout)
        self.loop, pool = loop or Loop(), PagePool(NUM_PAGES, PAGE)
        arena = DeviceArena(NUM_PAGES * PAGE, PAGE)
        self.manager = LifecycleManager("card0", arena, pool, self.loop)
        for name in (*names, *homes):
            self.manager.add(self.another(name, homes.get(name, HOME)))
        first = next(iter(self.manager.card_models.values()))
        first.gate.state, first.weights.model = "ready", object()
        pool.claim_home(first.name, first.weights.home)

    def __getitem__(self, name: str) -> Any:
        return self.manager.card_models[name]

    @property
    def states(self) -> dict[str, str]:
        return {name: card_model.gate.state for name, card_model in self.manager.card_models.items()}

    def another(self, name: str, home: range = HOME) -> Any:
        """A card_model that the manager doesn't know."""
        gate, weights = Gate(name, self.manager, self.timeout, "unloaded"), Weights(home)
        weights.may_load.set()
        return CardModel(name, gate, weights, Engine(), EngineHooks(), Policy(), 0, 4)  # type: ignore[arg-type]
