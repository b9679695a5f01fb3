"""Who owns which page of a card's arena. Pure Python: pages are integers, handing one over moves an integer.

A page is free, or an engine's (for KV blocks: its *account*), or part of the *home* of an awake model's
weights. Only the card's device loop touches a pool, so there are no locks; others may ask for `counts`.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager

from onecard.engines.memory.accounts import Account, FreePages, PageCounts
from onecard.engines.memory.reclaim import (
    Action,
    EngineSnapshot,
    PoolSnapshot,
    Preempt,
    Reclaimer,
    plan_idle,
    plan_reclaim,
)


class PoolIntegrityError(RuntimeError):
    """The books of a page or block pool don't add up: a bug, and every result from here on is suspect."""


class PagePool:
    """`num_pages` pages of `page_bytes` bytes, each free, or owned by one engine, or in one claimed home.

    `clock` orders the use of cached pages of all engines of the card; tests inject a counter. `recalls`
    counts pages that were taken from an engine, idle or cached ones included, since the pool exists;
    `preemptions` counts sequences that lost their blocks, by cause: "memory", "floor", "wake".
    """

    def __init__(self, num_pages: int, page_bytes: int, clock: Callable[[], float] = time.monotonic):
        self.num_pages, self.page_bytes, self.clock = num_pages, page_bytes, clock
        self.recalls: Counter[str] = Counter()
        self.preemptions: Counter[str] = Counter()
        self._free = FreePages(range(num_pages))
        self._accounts: dict[str, Account] = {}
        self._homes: dict[str, set[int]] = {}
        self._claiming: tuple[set[int], frozenset[int]] | None = None
        """While a home is claimed: what it has so far, and all that it is to have."""

    @property
    def free_pages(self) -> int:
        return len(self._free)

    @property
    def engines(self) -> tuple[str, ...]:
        return tuple(self._accounts)

    def add_engine(self, name: str, floor_pages: int, ceiling_pages: int, reclaimer: Reclaimer) -> None:
        """Opens an account. Raises ValueError when floors and claimed homes would exceed the pool."""
        if name in self._accounts:
            raise ValueError(f"engine {name!r} is in the page pool already")
        self._check_share(name, floor_pages, ceiling_pages)
        self._accounts[name] = Account(floor_pages, ceiling_pages, reclaimer)

    def set_share(self, name: str, floor_pages: int, ceiling_pages: int) -> None:
        """Changes what an engine is guaranteed and allowed: none while its model sleeps.

        Takes no page away: what is above a lowered ceiling goes as it comes back, and nothing is granted
        until then. Raises ValueError as `add_engine` does, and changes nothing.
        """
        account = self._accounts[name]
        self._check_share(name, floor_pages, ceiling_pages)
        account.floor, account.ceiling = floor_pages, ceiling_pages
        account.excess = max(0, len(account.pages) - ceiling_pages)

    def remove_engine(self, name: str) -> None:
        """Closes an account. Raises PoolIntegrityError while it owns pages."""
        if pages := self._accounts[name].pages:
            raise PoolIntegrityError(f"{name} leaves the page pool with {len(pages)} pages of its own")
        del self._accounts[name]

    # --- homes ---------------------------------------------------------------------------------------

    def keep_for_last(self, pages: Collection[int]) -> None:
        """The pages of every model's home, awake or not: KV takes others first, so that waking is cheap."""
        self._free.keep_for_last(pages)

    @property
    def home_pages(self) -> int:
        """Pages in claimed homes."""
        return sum(map(len, self._homes.values()))

    def has_home(self, name: str) -> bool:
        """Whether its home is claimed, be it of no pages."""
        return name in self._homes

    def home(self, name: str) -> frozenset[int]:
        """The pages of a claimed home; none while the model sleeps."""
        return frozenset(self._homes.get(name, ()))

    def claim_home(self, name: str, pages: range) -> bool:
        """Takes exactly these pages, whoever has them; False, and nothing taken, where that can't be now.

        Idle and cached pages of engines are taken; pages in use are vacated by their engine, which moves
        the blocks elsewhere or preempts. False: a page lies in another claimed home, or a step in flight
        holds it. An engine may fall below its floor for as long as its requests wait to resume. The same
        holds where moving blocks raises: nothing is claimed.

        Raises ValueError when the home is claimed already, isn't in the pool, or with the others and all
        floors would exceed it (`homes.can_be_awake` tells beforehand).
        """
        if name in self._homes:
            raise ValueError(f"{name} has a home already")
        if not 0 <= pages.start <= pages.stop <= self.num_pages:
            raise ValueError(f"{name}: a home of pages {pages} isn't in a pool of {self.num_pages}")
        self._check_promises(name, len(pages) + sum(a.floor for a in self._accounts.values()))
        if any(not home.isdisjoint(pages) for home in self._homes.values()):
            return False
        with self._claim(name, pages):
            for page in pages:
                self._take_unused(page)
            for page in pages:
                owner = self._owner(page)
                if owner is not None and not self._accounts[owner].reclaimer.vacate(page, pages):
                    break
                self._take_unused(page)
        return name in self._homes

    def release_home(self, name: str) -> None:
        """The pages of a home are free: the model sleeps, or is gone."""
        for page in self._homes.pop(name):
            self._free.add(page)

    @contextmanager
    def _claim(self, name: str, pages: range) -> Iterator[None]:
        """Whatever comes free of `pages` meanwhile belongs to the home at once, and to nobody else. A home
        that isn't whole in the end is released."""
        taken: set[int] = set()
        self._homes[name] = taken
        self._claiming = taken, frozenset(pages)
        try:
            yield
        finally:
            self._claiming = None
            if len(taken) < len(pages):
                self.release_home(name)
            for account in self._accounts.values():
                account.excess = max(0, len(account.pages) - account.ceiling)

    def _take_unused(self, page: int) -> None:
        """Takes a page that is free, or its owner's without a block in use."""
        if page in self._free:
            self._free.remove(page)
            self._put_free(page)
            return
        owner = self._owner(page)
        if owner is not None and not self._accounts[owner].reclaimer.is_active(page):
            self._take_back(owner, page)

    def _owner(self, page: int) -> str | None:
        return next((name for name, account in self._accounts.items() if page in account.pages), None)

    # --- pages for blocks ----------------------------------------------------------------------------

    def owned(self, engine: str) -> int:
        """How many pages `engine` owns; one that is being claimed counts no more, so that what lies in it
        may move to another."""
        pages = self._accounts[engine].pages
        return len(pages) if self._claiming is None else len(pages - self._claiming[1])

    def pages_of(self, engine: str) -> frozenset[int]:
        return frozenset(self._accounts[engine].pages)

    def floor(self, engine: str) -> int:
        return self._accounts[engine].floor

    def ceiling(self, engine: str) -> int:
        return self._accounts[engine].ceiling

    def room(self, engine: str) -> int:
        """Pages that `engine` may still get before it has all that it may (`most`)."""
        return max(0, self.most(engine) - self.owned(engine))

    def most(self, engine: str) -> int:
        """Pages that `engine` may have while the homes are what they are, if nobody else has any."""
        return min(self.ceiling(engine), self.num_pages - self.home_pages)

    def most_ever(self, engine: str) -> int:
        """The same while no other model is awake."""
        return min(self.ceiling(engine), self.num_pages - len(self._homes.get(engine, ())))

    def obtainable_pages(self, engine: str) -> int:
        """Pages that `acquire` would give `engine` now: free, idle, cached; up to its floor in any case."""
        others = (account.reclaimer for name, account in self._accounts.items() if name != engine)
        unused = self.free_pages + sum(reclaimer.num_reclaimable_pages() for reclaimer in others)
        return min(self.room(engine), max(unused, self.floor(engine) - self.owned(engine)))

    def cheapest_cached_page(self, engine: str) -> float:
        """The value (`EvictablePage.value`) of the least valuable cached page that others hold, else inf."""
        now, cheapest = self.clock(), float("inf")
        for name, other in self._accounts.items():
            if name != engine:
                for page in other.reclaimer.evictable_pages(1):
                    cheapest = min(cheapest, page.value(now))
        return cheapest

    def acquire(self, engine: str, n: int) -> list[int] | None:
        """`n` pages for `engine`, reclaimed from others where needed; None (and none) on shortage."""
        if n > self.room(engine):
            return None
        exhausted: set[str] = set()
        while n > self.free_pages:
            plan = plan_reclaim(self.snapshot(n, exhausted), engine, n)
            if plan is None:
                return None
            exhausted |= self._apply(plan)
        return self._grant(engine, n)

    def acquire_unused(self, engine: str, at_most: int) -> list[int]:
        """Up to `at_most` pages that are free or that others hold idle: costs nobody anything."""
        want = min(at_most, self.room(engine))
        if want > self.free_pages:
            self._apply(plan_idle(self.snapshot(want), engine, want))
        return self._grant(engine, min(want, self.free_pages))

    def release(self, engine: str, pages: Iterable[int]) -> None:
        """Gives pages back. Nothing of `engine` may be left in them."""
        account = self._accounts[engine]
        for page in pages:
            if page not in account.pages:
                raise PoolIntegrityError(f"{engine} releases page {page}, which it doesn't own")
            account.pages.remove(page)
            account.excess = min(account.excess, max(0, len(account.pages) - account.ceiling))
            self._put_free(page)

    def counts(self) -> tuple[PageCounts, ...]:
        """How many pages each engine has. Any thread may ask; figures of different engines may be a step
        apart."""
        return tuple(account.count(name) for name, account in self._accounts.copy().items())

    def snapshot(self, evictable_limit: int | None = None, exhausted: Collection[str] = ()) -> PoolSnapshot:
        """The state of the pool, for its own thread; `evictable_limit` bounds the evictable pages listed for
        each engine, the least valuable. Engines that are `exhausted` have nothing more to preempt."""
        engines = []
        for name, account in self._accounts.items():
            evictable = account.reclaimer.evictable_pages(evictable_limit)
            engines.append(
                EngineSnapshot(
                    name,
                    self.owned(name),
                    account.floor,
                    account.ceiling,
                    tuple(page for page in account.reclaimer.idle_pages() if not self._is_claimed(page)),
                    tuple(e for e in evictable if not self._is_claimed(e.page)),
                    preemptable=name not in exhausted,
                )
            )
        homes = tuple((name, tuple(sorted(pages))) for name, pages in self._homes.items())
        return PoolSnapshot(
            self.num_pages, self.page_bytes, self.free_pages, self.clock(), tuple(engines), homes
        )

    def check_integrity(self) -> None:
        """Every page is free, in one home or has one owner, and engines know only their own; else
        PoolIntegrityError."""
        owned = [page for account in self._accounts.values() for page in account.pages]
        homes = [page for home in self._homes.values() for page in home]
        if sorted([*self._free, *owned, *homes]) != list(range(self.num_pages)):
            raise PoolIntegrityError(
                f"{len(self._free)} free and {len(owned)} owned pages and {len(homes)} of homes are not the "
                f"pool's {self.num_pages}"
            )
        for name, account in self._accounts.items():
            if fault := account.fault():
                raise PoolIntegrityError(f"{name} {fault}")

    def _grant(self, engine: str, n: int) -> list[int]:
        pages = self._free.take(n)
        self._accounts[engine].pages.update(pages)
        return pages

    def _put_free(self, page: int) -> None:
        """A page that is nobody's now is free, unless it is being claimed."""
        if self._claiming is not None and self._is_claimed(page):
            self._claiming[0].add(page)
        else:
            self._free.add(page)

    def _is_claimed(self, page: int) -> bool:
        """Whether a page belongs to the home that is being claimed, whoever has it yet."""
        return self._claiming is not None and page in self._claiming[1]

    def _take_back(self, engine: str, page: int) -> None:
        """An idle or evictable page, and what is cached in it, goes from `engine`."""
        self._accounts[engine].reclaimer.evict_page(page)
        self.release(engine, [page])
        self.recalls[engine] += 1

    def _check_share(self, name: str, floor: int, ceiling: int) -> None:
        if not 0 <= floor <= ceiling:
            raise ValueError(f"{name}: need 0 <= floor ({floor}) <= ceiling ({ceiling}) pages")
        self._check_promises(name, floor + sum(a.floor for n, a in self._accounts.items() if n != name))

    def _check_promises(self, name: str, pages: int) -> None:
        """`pages`: of floors, and of a home that isn't claimed yet."""
        promised = pages + self.home_pages
        if promised > self.num_pages:
            raise ValueError(
                f"{name}: homes and floors of {promised} pages are promised out of {self.num_pages}"
            )

    def _apply(self, plan: list[Action]) -> set[str]:
        """Carries out a plan up to its first preemption (then plan anew); returns who was asked in vain."""
        for action in plan:
            reclaimer = self._accounts[action.engine].reclaimer
            if isinstance(action, Preempt):
                before = self.free_pages + reclaimer.num_reclaimable_pages()
                reclaimer.preempt(action.pages)
                gained = self.free_pages + reclaimer.num_reclaimable_pages() - before
                return set() if gained > 0 else {action.engine}
            self._take_back(action.engine, action.page)
        return set()
