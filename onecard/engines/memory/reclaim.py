"""Whose pages go when an engine needs more than are free: a pure decision over a snapshot of the pool.

The order, cheapest loss first:

1. idle pages (no content at all), those of borrowers before those of engines within their floor;
2. the least valuable pages that hold only unreferenced cached blocks, of any engine;
3. only for the part of a request that lies below the requester's floor: preemption of the newest
   requests of engines above theirs.

Whatever happens, an engine keeps `min(floor, active)` pages: a loan is recalled, a guarantee never. What
merely lies idle or cached within a floor may go to others, whoever waits for what: its owner gets as many
pages back the moment it can use them, since then rule 3 is on its side. (If requests that wait kept pages for
themselves, two engines whose requests have outgrown their floors could keep them from each other for ever.)
"""

from collections.abc import Container, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Protocol

_AGE_OFFSET = 1e-3


@dataclass(frozen=True)
class EvictablePage:
    """A page without an active block that holds cached ones.

    `last_used` is on the page pool's clock; `cost` is what recomputing the cached tokens would take, in a
    unit that all engines of the card share (FLOPs).
    """

    page: int
    last_used: float
    cost: float

    def value(self, now: float) -> float:
        """What losing the page may cost: recomputing it, with a hit taken as likely as it is recent."""
        return self.cost / (max(now - self.last_used, 0.0) + _AGE_OFFSET)


class Reclaimer(Protocol):
    """How the pool gets pages back from an engine. `BlockPool` implements all of it.

    The pages an engine owns are of three kinds: idle (nothing in them), evictable (cached blocks, none of
    them in use) and active (at least one block in use).
    """

    def idle_pages(self) -> list[int]: ...

    def evictable_pages(self, limit: int | None = None) -> list[EvictablePage]:
        """Least valuable first; at most `limit`."""
        ...

    def num_idle_pages(self) -> int:
        """Counted in O(1); any thread may ask."""
        ...

    def num_reclaimable_pages(self) -> int:
        """Idle and evictable pages, counted in O(1); any thread may ask."""
        ...

    def is_active(self, page: int) -> bool:
        """Whether a page of the engine holds a block in use."""
        ...

    def evict_page(self, page: int) -> None:
        """Forget an idle or evictable page and all in it. The pool takes it over: don't release it."""
        ...

    def demand_pages(self) -> int:
        """Pages that running and waiting requests want, cache not counted; any thread may ask."""
        ...

    def preempt(self, pages_needed: int) -> int:
        """Preempt the newest requests until `pages_needed` fewer pages are active; returns how many are.

        0 says that nothing can be freed now. Blocks of a step in flight must not be freed here.
        """
        ...

    def vacate(self, page: int, avoid: Container[int]) -> bool:
        """Move the blocks in use of `page` to pages that aren't in `avoid`, or preempt their requests.

        Afterwards the page is evictable, idle or released. False: a step in flight holds it.
        """
        ...


@dataclass(frozen=True)
class EngineSnapshot:
    """One engine's pages.

    `evictable` may be cut to the engine's least valuable pages, as long as at least as many are listed as the
    plan may need. `preemptable` is False once the engine has said that it can free no more.
    """

    name: str
    owned: int
    floor: int
    ceiling: int
    idle: tuple[int, ...] = ()
    evictable: tuple[EvictablePage, ...] = ()
    preemptable: bool = True

    @property
    def borrowed(self) -> int:
        return max(0, self.owned - self.floor)

    @property
    def active(self) -> int:
        return self.owned - len(self.idle) - len(self.evictable)

    @property
    def recallable(self) -> int:
        """Pages in use that are on loan, once its idle and evictable ones are gone."""
        return max(0, self.active - self.floor)


@dataclass(frozen=True)
class PoolSnapshot:
    """The whole pool at the instant `now` of its clock: `num_pages` = free + owned + those of `homes`.

    `homes`: the pages that the weights of awake models lie in, by model.
    """

    num_pages: int
    page_bytes: int
    free_pages: int
    now: float
    engines: tuple[EngineSnapshot, ...] = ()
    homes: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def engine(self, name: str) -> EngineSnapshot:
        return next(e for e in self.engines if e.name == name)


@dataclass(frozen=True)
class TakeBack:
    """Take a page back that is empty, or whose cached blocks are dropped."""

    engine: str
    page: int


@dataclass(frozen=True)
class Preempt:
    """Have the engine free its newest requests until `pages` more of its pages hold no active block."""

    engine: str
    pages: int


Action = TakeBack | Preempt


def _victims(snapshot: PoolSnapshot, requester: str) -> list[EngineSnapshot]:
    """The other engines, the largest borrowers first."""
    others = (e for e in snapshot.engines if e.name != requester)
    return sorted(others, key=lambda e: (-e.borrowed, e.name))


def _idle_actions(victims: list[EngineSnapshot]) -> Iterator[Action]:
    """Of borrowers first: those come first in `victims`."""
    return (TakeBack(engine.name, page) for engine in victims for page in engine.idle)


def _evict_actions(victims: list[EngineSnapshot], now: float) -> Iterator[Action]:
    pages = sorted((p.value(now), p.last_used, e.name, p.page) for e in victims for p in e.evictable)
    return (TakeBack(name, page) for _, _, name, page in pages)


def _preempt_actions(victims: list[EngineSnapshot], need: int) -> Iterator[Preempt]:
    for engine in victims:
        pages = min(need, engine.recallable) if engine.preemptable else 0
        if pages:
            need -= pages
            yield Preempt(engine.name, pages)


def plan_idle(snapshot: PoolSnapshot, engine: str, need: int) -> list[Action]:
    """The idle pages of other engines that `engine` would take to have `need` pages, as far as they go."""
    return list(islice(_idle_actions(_victims(snapshot, engine)), max(0, need - snapshot.free_pages)))


def plan_reclaim(snapshot: PoolSnapshot, engine: str, need: int) -> list[Action] | None:
    """What to do so that `need` pages are free for `engine`; None when the rules don't allow it.

    `need` counts the pages that are free already. An empty list means that nothing has to be done. After a
    `Preempt` the caller must plan again: only the engine knows which pages its requests leave behind.
    """
    asker = snapshot.engine(engine)
    if asker.owned + need > asker.ceiling:
        return None
    missing = need - snapshot.free_pages
    victims = _victims(snapshot, engine)
    unused = chain(_idle_actions(victims), _evict_actions(victims, snapshot.now))
    plan = list(islice(unused, max(0, missing)))
    missing -= len(plan)
    if missing <= 0:
        return plan
    if missing > asker.floor - asker.owned:
        return None
    preempts = list(_preempt_actions(victims, missing))
    if sum(p.pages for p in preempts) < missing:
        return None
    return [*plan, *preempts]
