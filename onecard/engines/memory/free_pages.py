"""The pages of an arena that nobody owns, in the order in which they are handed out."""

import heapq
from collections.abc import Collection, Iterable, Iterator


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
