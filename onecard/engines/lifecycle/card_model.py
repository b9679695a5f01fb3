"""A model on its card: its weights, and how its engine moves in and out. Knows no kind of model."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from onecard.engines.api import SleepLevel
from onecard.engines.lifecycle.gate import Gate
from onecard.engines.lifecycle.home_weights import HomeWeights
from onecard.engines.memory.homes import Resident
from onecard.engines.memory.page_pool import PagePool
from onecard.engines.memory.reclaim import Reclaimer
from onecard.engines.runtime.step_engine import StepEngine


class RankedEngine(StepEngine, Protocol):
    """`priority` is added to that of each request."""

    priority: int


class EngineHooks(Protocol):
    """What a kind of engine does when its weights come and go; all of it on the device loop's thread, but
    for `move_in` at start, when there is no such thread yet."""

    peak_bytes: int | None
    """What the largest step took beside weights and cache; None where it wasn't, or can't be, measured."""
    graph_bytes: int | None
    """What the captured graphs hold; None where there are none."""

    def move_in(self, model: nn.Module) -> Generator[None, None, None]:
        """Steps run on `model` from now on; the first time, get ready to serve (capture, warm up). It takes
        going through the generator, no part of which keeps the card for long: others' steps run between."""
        ...

    def move_out(self) -> None:
        """Nothing runs: give back all memory of the card but the weights'."""
        ...

    def forget(self) -> None:
        """Hold the model no longer."""
        ...

    def close(self) -> None:
        """The engine leaves its card for good: hold nothing there."""
        ...

    def has_requests(self) -> bool:
        """Whether anything runs or waits. Any thread may ask."""
        ...

    def limit_steps(self, max_num_seqs: int, max_num_batched_tokens: int, long_prefill: int) -> None:
        """Steps hold no more than this from now on. The first two may not be above what the engine was built
        with; `long_prefill` is `long_prefill_token_threshold`."""
        ...


@dataclass
class Policy:
    """When a model may sleep; changes with the registry."""

    pinned: bool = False
    ttl: float | None = None
    sleep_level: SleepLevel = 1


@dataclass(eq=False)
class CardModel:
    """One model: its gate on the event loop, its weights' home, its engine's hooks and its share of pages.

    The manager alone changes `gate.state`.
    """

    name: str
    gate: Gate
    weights: HomeWeights
    engine: RankedEngine
    reclaimer: Reclaimer | None
    """What has pages of the card; None for an engine without KV blocks."""
    hooks: EngineHooks
    policy: Policy
    floor_pages: int
    ceiling_pages: int
    longest_pages: int = 0
    """What a request of the greatest length takes."""
    on_load: Callable[[int, int], None] | None = None
    """Told of the bytes that were read while the weights load."""

    @property
    def awake(self) -> bool:
        return self.gate.state == "ready"

    @property
    def busy(self) -> bool:
        """Something of it runs or waits, or is on its way."""
        return self.hooks.has_requests() or self.gate.num_waiting > 0

    def rest(self, level: SleepLevel | None = None) -> None:
        """Its gate is closed: it sleeps so deep, or is about to; None: as deep as its weights lie."""
        level = level or (2 if self.weights.model is None else 1)
        self.gate.turn("asleep" if level == 1 else "unloaded")

    def seen(self, pool: PagePool, quiet: bool) -> Resident:
        """As decisions see it. It has its place for as long as its home is claimed, whatever its state: also
        while its last requests finish, or once it has failed and isn't cleared away yet."""
        return Resident(
            self.name,
            self.weights.home,
            awake=pool.has_home(self.name),
            pinned=self.policy.pinned and self.gate.state != "failed",
            floor_pages=self.floor_pages,
            longest_pages=self.longest_pages,
            idle=not self.busy,
            quiet=quiet,
            last_used=self.gate.last_used,
            failed=self.gate.refusal is not None,
        )
