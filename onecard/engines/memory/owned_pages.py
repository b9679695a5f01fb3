"""The pages that one engine owns, sorted by what can be done with them, and which of them to lose first."""

import heapq
from collections import OrderedDict
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from itertools import islice

from onecard.engines.memory.reclaim import EvictablePage


class EvictablePages:
    """Pages in groups of equal numbers of cached blocks, least recently used first in each.

    Within a group that is also the order of value, so the least valuable page of all is found by a look at
    one page a group. All but `cheapest` are O(1).
    """

    def __init__(self) -> None:
        self._groups: dict[int, OrderedDict[int, float]] = {}
        self._group_of: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._group_of)

    def __contains__(self, page: object) -> bool:
        return page in self._group_of

    def put(self, page: int, num_cached: int, last_used: float) -> None:
        """A page that stays in its group keeps its place there."""
        if self._group_of.get(page) == num_cached:
            return
        self.discard(page)
        group = self._groups.setdefault(num_cached, OrderedDict())
        older = bool(group) and last_used < group[next(reversed(group))]
        group[page] = last_used
        if older:  # some of its blocks were evicted, which happens to the page that was used least recently
            group.move_to_end(page, last=False)
        self._group_of[page] = num_cached

    def discard(self, page: int) -> None:
        num_cached = self._group_of.pop(page, None)
        if num_cached is not None:
            group = self._groups[num_cached]
            del group[page]
            if not group:
                del self._groups[num_cached]

    def cheapest(self, limit: int | None, now: float, cost_per_block: float) -> list[EvictablePage]:
        """At most `limit`, the least valuable first. O(groups + pages listed x log groups)."""
        groups = [_listed(group, n * cost_per_block) for n, group in self._groups.items()]
        return list(islice(heapq.merge(*groups, key=lambda page: page.value(now)), limit))


def _listed(group: OrderedDict[int, float], cost: float) -> Iterator[EvictablePage]:
    return (EvictablePage(page, last_used, cost) for page, last_used in group.items())


@dataclass(eq=False, slots=True)
class OwnedPage:
    """One page: `capacity` = active + cached + free blocks. `cached` is in the order of eviction."""

    id: int
    capacity: int
    free: list[int]
    cached: dict[int, None] = field(default_factory=dict)
    active: int = 0
    last_used: float = 0.0
    rank: tuple[bool, int, int] | None = None
    """Where the page stands among those with free blocks: in use first, then by fewest free, then by id."""

    def take_free(self, at_most: int) -> list[int]:
        """Makes up to `at_most` free blocks active, the one freed last first. The caller files the page."""
        keep = max(0, len(self.free) - at_most)
        taken = self.free[keep:]
        del self.free[keep:]
        self.active += len(taken)
        taken.reverse()
        return taken


class OwnedPages:
    """A page is on every list that fits its counts; call `file` after changing them. O(log n) a call.

    lru        pages with cached blocks, least recently used first
    evictable  those of them with no active block
    idle       pages with nothing in them
    """

    def __init__(self) -> None:
        self.by_id: dict[int, OwnedPage] = {}
        self.lru: OrderedDict[int, OwnedPage] = OrderedDict()
        self.evictable = EvictablePages()
        self.idle: OrderedDict[int, OwnedPage] = OrderedDict()
        # Ranks of pages with free blocks; an entry that is no longer its page's rank is stale.
        self._heap: list[tuple[bool, int, int]] = []

    def add(self, page: OwnedPage) -> None:
        self.by_id[page.id] = page
        self.file(page)

    def remove(self, page: OwnedPage) -> None:
        del self.by_id[page.id]
        page.rank = None
        self.evictable.discard(page.id)
        for pages in (self.lru, self.idle):
            pages.pop(page.id, None)

    def file(self, page: OwnedPage) -> None:
        """Puts a page on the lists that fit its counts; where it stays on one, it keeps its place."""
        in_use = page.active > 0
        rank = (not in_use, len(page.free), page.id) if page.free else None
        if rank != page.rank:
            page.rank = rank
            if rank is not None:
                heapq.heappush(self._heap, rank)
                if len(self._heap) > 64 + 4 * len(self.by_id):
                    self._heap = sorted(p.rank for p in self.by_id.values() if p.rank)
        cached = bool(page.cached)
        _list_if(cached, self.lru, page)
        if cached and not in_use:
            self.evictable.put(page.id, len(page.cached), page.last_used)
        else:
            self.evictable.discard(page.id)
        _list_if(len(page.free) == page.capacity, self.idle, page)

    def file_as_newest(self, page: OwnedPage, now: float) -> None:
        """The same for a page that was used just now."""
        page.last_used = now
        self.lru.pop(page.id, None)
        self.evictable.discard(page.id)
        self.file(page)

    def fullest(self) -> OwnedPage:
        """The page to fill next: pages in use before others, of these the one with the fewest free blocks.

        There must be one with a free block.
        """
        while True:
            rank = self._heap[0]
            page = self.by_id.get(rank[2])
            if page is not None and page.rank == rank:
                return page
            heapq.heappop(self._heap)

    def oldest(self, avoid: Container[int] = ()) -> OwnedPage | None:
        """The page with cached blocks, of those not in `avoid`, that was used least recently."""
        return next((page for page in self.lru.values() if page.id not in avoid), None)

    def with_room(self, avoid: Container[int]) -> list[OwnedPage]:
        """Pages with free blocks that aren't in `avoid`, in the order in which to fill them. O(n log n)."""
        pages = (page for page in self.by_id.values() if page.id not in avoid)
        return [page for _, page in sorted((page.rank, page) for page in pages if page.rank is not None)]

    def fault(
        self, page: OwnedPage, blocks: range, active: Container[int], hashed: Container[int]
    ) -> str | None:
        """What is wrong with a page of these `blocks`, if anything."""
        in_use = [b for b in blocks if b in active]
        if len(in_use) != page.active or sorted([*page.free, *page.cached, *in_use]) != list(blocks):
            counts = f"{page.active} active, {len(page.cached)} cached and {len(page.free)} free"
            return f"{counts} blocks are not its {page.capacity}"
        if any(b in hashed for b in page.free) or any(b not in hashed for b in page.cached):
            return "a free block has a hash, or a cached one has none"
        cached = bool(page.cached)
        listed = tuple(page.id in pages for pages in (self.lru, self.evictable, self.idle))
        if listed != (cached, cached and not in_use, len(page.free) == page.capacity):
            return "it is on the wrong lists"
        rank = (not in_use, len(page.free), page.id) if page.free else None
        if page.rank != rank or (rank is not None and rank not in self._heap):
            return "it is ranked wrongly"
        return None


def _list_if(belongs: bool, pages: OrderedDict[int, OwnedPage], page: OwnedPage) -> None:
    if not belongs:
        pages.pop(page.id, None)
    elif page.id not in pages:
        pages[page.id] = page
