"""What a page pool knows of the pages that nobody owns, and of each engine's; and what it tells of these."""

import heapq
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from onecard.engines.memory.reclaim import Reclaimer


class FreePages:
    """Pages that lie in nobody's home go first, then those of homes, each from the lowest up.

    A sleeping model wants its home back some day, and pages in use must then be emptied; filling homes from
    the lowest page up leaves most of them whole. O(log n) a page.
    """

    def __init__(self, pages: Iterable[int]):
        self._pages = set(pages)
        self._in_homes: frozenset[int] = frozenset()
        self._heap: list[tuple[bool, int]] = []
        self._rebuild()

    def __len__(self) -> int:
        return len(self._pages)

    def __iter__(self) -> Iterator[int]:
        return iter(self._pages)

    def __contains__(self, page: object) -> bool:
        return page in self._pages

    def keep_for_last(self, pages: Collection[int]) -> None:
        """These lie in homes. O(n): for a start and for a reload."""
        self._in_homes = frozenset(pages)
        self._rebuild()

    def take(self, n: int) -> list[int]:
        """`n` pages; there must be as many."""
        taken: list[int] = []
        while len(taken) < n:
            page = heapq.heappop(self._heap)[1]
            if page in self._pages:
                self._pages.remove(page)
                taken.append(page)
        return taken

    def remove(self, page: int) -> None:
        """Takes this very page; its entry in the heap is left to be skipped."""
        self._pages.remove(page)

    def add(self, page: int) -> None:
        self._pages.add(page)
        heapq.heappush(self._heap, (page in self._in_homes, page))
        if len(self._heap) > 64 + 4 * len(self._pages):
            self._rebuild()

    def _rebuild(self) -> None:
        self._heap = sorted((page in self._in_homes, page) for page in self._pages)


@dataclass
class Account:
    """One engine's share of the pool. Pages above `floor` are on loan; `ceiling` bounds them all.

    `excess`: pages that it had above its ceiling when that was lowered, and hasn't given back yet.
    """

    floor: int
    ceiling: int
    reclaimer: Reclaimer
    pages: set[int] = field(default_factory=set)
    excess: int = 0

    def fault(self) -> str | None:
        """What doesn't add up, if anything. O(pages)."""
        if len(self.pages) > self.ceiling + self.excess:
            return f"owns {len(self.pages)} pages, over its ceiling of {self.ceiling}"
        known = {*self.reclaimer.idle_pages(), *(p.page for p in self.reclaimer.evictable_pages())}
        if not known <= self.pages:
            return f"holds pages that it doesn't own: {sorted(known - self.pages)}"
        return None

    def count(self, name: str) -> "PageCounts":
        """From any thread: nothing is iterated."""
        reclaimer = self.reclaimer
        owned, idle = len(self.pages), reclaimer.num_idle_pages()
        cached = max(0, reclaimer.num_reclaimable_pages() - idle)
        return PageCounts(name, owned, idle, cached, self.floor, self.ceiling, reclaimer.demand_pages())


@dataclass(frozen=True)
class PageCounts:
    """How many pages an engine has: `owned` = active + cached + idle, to a step's change if another thread
    asks. `demand`: what its running and waiting requests want."""

    name: str
    owned: int
    idle: int
    cached: int
    floor: int
    ceiling: int
    demand: int

    @property
    def active(self) -> int:
        return max(0, self.owned - self.idle - self.cached)

    @property
    def borrowed(self) -> int:
        return max(0, self.owned - self.floor)
