"""Who owns which page of a card's arena. Pure Python: pages are integers, handing one over moves an integer.

Only the card's device loop touches a pool, so there are no locks.
"""

import heapq
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

from onecard.engines.memory.reclaim import (
    Action,
    EngineSnapshot,
    EvictablePage,
    PoolSnapshot,
    Preempt,
    plan_idle,
    plan_reclaim,
)


class PoolIntegrityError(RuntimeError):
    """The books of a page or block pool don't add up: a bug, and every result from here on is suspect."""


class Reclaimer(Protocol):
    """How the pool gets pages back from an engine. `BlockPool` implements all of it.

    The pages an engine owns are of three kinds: idle (nothing in them), evictable (cached blocks, none of
    them in use) and active (at least one block in use).
    """

    def idle_pages(self) -> list[int]: ...

    def evictable_pages(self, limit: int | None = None) -> list[EvictablePage]:
        """Least recently used first; at most `limit`."""
        ...

    def num_reclaimable_pages(self) -> int:
        """Idle and evictable pages, counted in O(1)."""
        ...

    def evict_page(self, page: int) -> None:
        """Forget an idle or evictable page and all in it. The pool takes it over: don't release it."""
        ...

    def demand_pages(self) -> int:
        """Pages that running and waiting requests want, cache not counted."""
        ...

    def preempt(self, pages_needed: int) -> int:
        """Preempt the newest requests until `pages_needed` fewer pages are active; returns how many are.

        0 says that nothing can be freed now. Blocks of a step in flight must not be freed here.
        """
        ...


@dataclass
class _Account:
    """One engine's share of the pool. Pages above `floor` are on loan; `ceiling` bounds them all."""

    floor: int
    ceiling: int
    reclaimer: Reclaimer
    pages: set[int] = field(default_factory=set)


class PagePool:
    """`num_pages` pages of `page_bytes` bytes, each free or owned by one engine.

    `clock` orders the use of cached pages of all engines of the card; tests inject a counter.
    """

    def __init__(self, num_pages: int, page_bytes: int, clock: Callable[[], float] = time.monotonic):
        self.num_pages, self.page_bytes, self.clock = num_pages, page_bytes, clock
        self._free = list(range(num_pages))
        self._accounts: dict[str, _Account] = {}

    @property
    def free_pages(self) -> int:
        return len(self._free)

    @property
    def engines(self) -> tuple[str, ...]:
        return tuple(self._accounts)

    def add_engine(self, name: str, floor_pages: int, ceiling_pages: int, reclaimer: Reclaimer) -> None:
        """Opens an account. Raises ValueError when the floors of all engines would exceed the pool."""
        if name in self._accounts:
            raise ValueError(f"engine {name!r} is in the page pool already")
        if not 0 <= floor_pages <= ceiling_pages:
            raise ValueError(f"{name}: need 0 <= floor ({floor_pages}) <= ceiling ({ceiling_pages}) pages")
        promised = floor_pages + sum(a.floor for a in self._accounts.values())
        if promised > self.num_pages:
            raise ValueError(f"{name}: floors of {promised} pages are promised out of {self.num_pages}")
        self._accounts[name] = _Account(floor_pages, ceiling_pages, reclaimer)

    def owned(self, engine: str) -> int:
        """How many pages `engine` owns."""
        return len(self._accounts[engine].pages)

    def pages_of(self, engine: str) -> frozenset[int]:
        return frozenset(self._accounts[engine].pages)

    def floor(self, engine: str) -> int:
        return self._accounts[engine].floor

    def ceiling(self, engine: str) -> int:
        return self._accounts[engine].ceiling

    def room(self, engine: str) -> int:
        """Pages that `engine` may still get before it is at its ceiling."""
        account = self._accounts[engine]
        return min(account.ceiling, self.num_pages) - len(account.pages)

    def obtainable_pages(self, engine: str) -> int:
        """Pages that `acquire` would give `engine` now: free, idle, cached; up to its floor in any case."""
        account = self._accounts[engine]
        unused = self.free_pages
        for name, other in self._accounts.items():
            if name != engine:
                spare = len(other.pages) - min(other.floor, other.reclaimer.demand_pages())
                unused += min(max(spare, 0), other.reclaimer.num_reclaimable_pages())
        return min(self.room(engine), max(unused, account.floor - len(account.pages)))

    def cheapest_cached_page(self, engine: str) -> float:
        """The value (`EvictablePage.value`) of the least valuable cached page that others hold, else inf."""
        now, cheapest = self.clock(), float("inf")
        for name, other in self._accounts.items():
            if name != engine and len(other.pages) > min(other.floor, other.reclaimer.demand_pages()):
                for page in other.reclaimer.evictable_pages(1):
                    cheapest = min(cheapest, page.value(now))
        return cheapest

    def acquire(self, engine: str, n: int) -> list[int] | None:
        """`n` pages for `engine`, reclaimed from others where needed; None (and none) on shortage."""
        if n > self.room(engine):
            return None
        exhausted: set[str] = set()
        while n > self.free_pages:
            plan = plan_reclaim(self._reclaim_snapshot(n, exhausted), engine, n)
            if plan is None:
                return None
            exhausted |= self._apply(plan)
        return self._grant(engine, n)

    def acquire_unused(self, engine: str, at_most: int) -> list[int]:
        """Up to `at_most` pages that are free or that others hold idle: costs nobody anything."""
        want = min(at_most, self.room(engine))
        if want > self.free_pages:
            self._apply(plan_idle(self._reclaim_snapshot(want, set()), engine, want))
        return self._grant(engine, min(want, self.free_pages))

    def release(self, engine: str, pages: Iterable[int]) -> None:
        """Gives pages back. Nothing of `engine` may be left in them."""
        account = self._accounts[engine]
        for page in pages:
            if page not in account.pages:
                raise PoolIntegrityError(f"{engine} releases page {page}, which it doesn't own")
            account.pages.remove(page)
            heapq.heappush(self._free, page)

    def snapshot(self, evictable_limit: int | None = None) -> PoolSnapshot:
        """The state of the pool; `evictable_limit` bounds the evictable pages listed for each engine."""
        engines = tuple(
            EngineSnapshot(
                name=name,
                owned=len(account.pages),
                floor=account.floor,
                ceiling=account.ceiling,
                demand=account.reclaimer.demand_pages(),
                idle=tuple(account.reclaimer.idle_pages()),
                evictable=tuple(account.reclaimer.evictable_pages(evictable_limit)),
            )
            for name, account in self._accounts.items()
        )
        return PoolSnapshot(self.num_pages, self.page_bytes, self.free_pages, self.clock(), engines)

    def check_integrity(self) -> None:
        """Every page is free or has one owner, and engines know only their own; else PoolIntegrityError."""
        seen = list(self._free)
        for account in self._accounts.values():
            seen.extend(account.pages)
        if sorted(seen) != list(range(self.num_pages)):
            raise PoolIntegrityError(
                f"{len(self._free)} free and {len(seen) - len(self._free)} owned pages are not the pool's "
                f"{self.num_pages}"
            )
        for name, account in self._accounts.items():
            if len(account.pages) > account.ceiling:
                raise PoolIntegrityError(
                    f"{name} owns {len(account.pages)} pages, over its ceiling of {account.ceiling}"
                )
            known = {*account.reclaimer.idle_pages(), *(p.page for p in account.reclaimer.evictable_pages())}
            if not known <= account.pages:
                raise PoolIntegrityError(
                    f"{name} holds pages that it doesn't own: {sorted(known - account.pages)}"
                )

    def _reclaim_snapshot(self, need: int, exhausted: set[str]) -> PoolSnapshot:
        snapshot = self.snapshot(need)
        engines = tuple(replace(e, preemptable=e.name not in exhausted) for e in snapshot.engines)
        return replace(snapshot, engines=engines) if exhausted else snapshot

    def _grant(self, engine: str, n: int) -> list[int]:
        pages = [heapq.heappop(self._free) for _ in range(n)]
        self._accounts[engine].pages.update(pages)
        return pages

    def _apply(self, plan: list[Action]) -> set[str]:
        """Carries out a plan up to its first preemption (then plan anew); returns who was asked in vain."""
        for action in plan:
            reclaimer = self._accounts[action.engine].reclaimer
            if isinstance(action, Preempt):
                before = self.free_pages + reclaimer.num_reclaimable_pages()
                reclaimer.preempt(action.pages)
                gained = self.free_pages + reclaimer.num_reclaimable_pages() - before
                return set() if gained > 0 else {action.engine}
            reclaimer.evict_page(action.page)
            self.release(action.engine, [action.page])
        return set()
