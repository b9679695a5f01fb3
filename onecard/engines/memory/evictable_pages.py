"""The pages of one engine that hold cached blocks and none in use, and which of them to lose first."""

import heapq
from collections import OrderedDict
from collections.abc import Iterator
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
