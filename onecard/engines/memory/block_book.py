"""What is in each block of one engine's pages: the books that a block pool decides by.

free     nothing in it                     -> `OwnedPage.free`
cached   unreferenced, but a known prefix  -> `OwnedPage.cached`
active   in use by `refs` requests         -> `BlockBook.refs`
"""

from collections.abc import Callable, Container, Iterable, Iterator
from itertools import islice

from onecard.engines.memory.owned_pages import OwnedPage, OwnedPages
from onecard.engines.memory.prefixes import PrefixTable


class BlockBook:
    """Pages, references and prefixes of an engine. `blocks_in_page(page)` gives the block ids of a page.

    A method that changes counts files the page on the lists of `pages`, unless it says that the caller does.
    """

    def __init__(self, blocks_in_page: Callable[[int], range]):
        self.pages = OwnedPages()
        self.prefixes = PrefixTable()
        self.refs: dict[int, int] = {}
        self.num_free = self.num_cached = 0
        self._blocks_in_page = blocks_in_page
        self._page_of: dict[int, OwnedPage] = {}

    def add_pages(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            blocks = self._blocks_in_page(number)
            page = OwnedPage(number, len(blocks), list(reversed(blocks)))
            self.pages.add(page)
            self._page_of.update(dict.fromkeys(blocks, page))
            self.num_free += len(blocks)

    def forget_page(self, page: OwnedPage) -> None:
        """Strikes out a page, all of whose blocks are free."""
        self.num_free -= len(page.free)
        for block in page.free:
            del self._page_of[block]
        self.pages.remove(page)

    def take(self, n: int) -> list[int]:
        """`n` free blocks, of the fullest pages, with one reference each; there must be as many."""
        blocks: list[int] = []
        while len(blocks) < n:
            page = self.pages.fullest()
            blocks += page.take_free(n - len(blocks))
            self.pages.file(page)
        self.num_free -= n
        self.refs.update(dict.fromkeys(blocks, 1))
        return blocks

    def revive(self, block: int) -> bool:
        """A cached block becomes active; the caller counts its reference. False for one that isn't cached."""
        page = self._page_of.get(block)
        if page is None or block not in page.cached:
            return False
        del page.cached[block]
        self.num_cached -= 1
        page.active += 1
        self.pages.file(page)
        return True

    def retire(self, block: int) -> OwnedPage:
        """An active block loses its last reference. The caller files the page that is returned."""
        page = self._page_of[block]
        del self.refs[block]
        page.active -= 1
        if block in self.prefixes:
            page.cached[block] = None
            self.num_cached += 1
        else:
            page.free.append(block)
            self.num_free += 1
        return page

    def drop_cached(self, page: OwnedPage, count: int) -> None:
        """Frees the `count` cached blocks of `page` that are next for eviction."""
        for block in list(islice(page.cached, count)):
            del page.cached[block]
            self.prefixes.drop(block)
            page.free.append(block)
            self.num_cached -= 1
            self.num_free += 1
        self.pages.file(page)

    def forget_prefixes(self) -> int:
        """Frees all cached blocks and forgets what active ones hold; returns how many prefixes that were."""
        forgotten = len(self.prefixes)
        self.prefixes.clear()
        for page in list(self.pages.lru.values()):
            self.drop_cached(page, len(page.cached))
        return forgotten

    def move_out(
        self, gone: OwnedPage, avoid: Container[int], copy: Callable[[dict[int, int]], None]
    ) -> bool:
        """Moves active blocks of a page to free ones outside `avoid`, as many as there are; False: none.

        References and prefixes follow; `copy({old: new})` is called once, and nothing has changed where it
        raises.
        """
        leaving = (block for block in self._blocks_in_page(gone.id) if block in self.refs)
        rooms = self.pages.with_room(avoid)
        moves = dict(zip(leaving, (block for page in rooms for block in reversed(page.free))))
        if moves:
            copy(moves)
        missing = len(moves)
        for page in rooms:
            missing -= len(page.take_free(missing))
            self.pages.file(page)
        for old, new in moves.items():
            self.refs[new] = self.refs.pop(old)
            self.prefixes.move(old, new)
            gone.active -= 1
            gone.free.append(old)
        self.pages.file(gone)
        return bool(moves)

    def faults(self, owned: frozenset[int]) -> Iterator[str]:
        """What doesn't add up, if the engine owns the pages `owned`. O(blocks)."""
        for page in self.pages.by_id.values():
            if fault := self.pages.fault(page, self._blocks_in_page(page.id), self.refs, self.prefixes):
                yield f"page {page.id}: {fault}"
        pages, active = self.pages.by_id.values(), len(self.refs)
        free, cached = sum(len(page.free) for page in pages), sum(len(page.cached) for page in pages)
        total = sum(page.capacity for page in pages)
        truths = {
            "it and the page pool agree who owns which page": set(self.pages.by_id) == owned,
            "free and cached blocks are as counted": (free, cached) == (self.num_free, self.num_cached),
            "active + cached + free = all blocks": free + cached + active == total == len(self._page_of),
            "active blocks have references": all(refs > 0 for refs in self.refs.values()),
            "hashes and blocks match": self.prefixes.is_consistent(),
        }
        yield from (f"no longer true: {truth}" for truth, holds in truths.items() if not holds)
