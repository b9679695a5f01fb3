"""The KV blocks of one engine: reference counts, free blocks, and the prefix cache, page by page.

A block of an owned page is in one of three states:

    free     nothing in it                     -> `_Page.free`
    cached   unreferenced, but a known prefix  -> `_Page.cached`; a hit or an eviction takes it out
    active   in use by `ref` requests          -> `_refs`

Everything is kept by page, because only whole pages go back to the card's pool: new blocks come from the
fullest page in use (so others run empty), eviction goes page after page in order of last use, and a page
with nothing in it is returned but for a small reserve.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from onecard.engines.memory.page_pool import PagePool, PoolIntegrityError
from onecard.engines.memory.prefix_hash import pack_tokens
from onecard.engines.memory.reclaim import EvictablePage


@dataclass(eq=False, slots=True)
class _Page:
    """An owned page. `cached` is in the order of eviction; `rank` is where the page stands in the heap."""

    id: int
    capacity: int
    free: list[int]
    cached: dict[int, None] = field(default_factory=dict)
    active: int = 0
    last_used: float = 0.0
    rank: tuple[bool, int, int] | None = None


@dataclass(frozen=True, slots=True)
class _Prefix:
    """What a block is cached as: its hash, and what a hit is compared with."""

    hash: bytes
    tokens: bytes
    parent: bytes | None


class BlockPool:
    """Blocks of one engine over the pages it owns; implements the page pool's `Reclaimer`.

    `blocks_in_page(page)` gives the block ids of a page. `cost_per_block` is what recomputing a cached block
    takes, in a unit common to the engines of the card (FLOPs). `waiting_blocks()` says how many blocks the
    waiting requests want; `preempt_newest()` frees the blocks of the newest running request and says whether
    there was one. Touched by the device loop only.
    """

    def __init__(
        self,
        engine_name: str,
        page_pool: PagePool,
        blocks_in_page: Callable[[int], range],
        enable_caching: bool = True,
        *,
        cost_per_block: float = 1.0,
        reserve_pages: int = 1,
        waiting_blocks: Callable[[], int] | None = None,
        preempt_newest: Callable[[], bool] | None = None,
    ):
        self.name, self.enable_caching = engine_name, enable_caching
        self.cost_per_block, self.reserve_pages = cost_per_block, reserve_pages
        self.waiting_blocks = waiting_blocks or (lambda: 0)
        self.preempt_newest = preempt_newest or (lambda: False)
        self.blocks_per_page = min((len(blocks_in_page(p)) for p in range(page_pool.num_pages)), default=0)
        """Blocks that any page is sure to give."""
        if not self.blocks_per_page:
            raise ValueError(
                f"{engine_name}: {page_pool.num_pages} pages of {page_pool.page_bytes:,} bytes "
                "don't each hold a block"
            )
        self._page_pool, self._blocks_in_page = page_pool, blocks_in_page
        self._pages: dict[int, _Page] = {}
        self._page_of: dict[int, _Page] = {}
        self._refs: dict[int, int] = {}
        self._prefixes: dict[int, _Prefix] = {}
        self._by_hash: dict[bytes, int] = {}
        self._num_free = self._num_cached = 0
        # Pages with free blocks, best first; entries whose rank is no longer the page's are stale.
        self._heap: list[tuple[bool, int, int]] = []
        # In order of last use: pages with cached blocks, those of them with no active block; and empty pages.
        self._lru: OrderedDict[int, _Page] = OrderedDict()
        self._evictable: OrderedDict[int, _Page] = OrderedDict()
        self._idle: OrderedDict[int, _Page] = OrderedDict()

    # --- what the scheduler uses -------------------------------------------------------------------

    @property
    def num_used_blocks(self) -> int:
        """Blocks that requests hold."""
        return len(self._refs)

    @property
    def num_cached_blocks(self) -> int:
        """Unreferenced blocks that a prefix hit may still bring back."""
        return self._num_cached

    @property
    def max_blocks(self) -> int:
        """Blocks that are sure to be there at the engine's ceiling: a request that needs more can't run."""
        return min(self._page_pool.ceiling(self.name), self._page_pool.num_pages) * self.blocks_per_page

    def num_free_blocks(self) -> int:
        """Blocks that `get_new_blocks` could hand out now, with no own request preempted.

        A lower bound in O(engines): pages that others hold partly filled are not counted.
        """
        pages = self._page_pool.obtainable_pages(self.name)
        return self._num_free + self._num_cached + pages * self.blocks_per_page

    def get_new_blocks(self, n: int) -> list[int] | None:
        """`n` blocks with one reference each and undefined content; None (and none) on shortage."""
        if n > self._num_free and not self._make_room(n):
            return None
        blocks: list[int] = []
        while len(blocks) < n:
            page = self._fullest_page()
            taken = page.free[: -(n - len(blocks)) - 1 : -1]
            del page.free[len(page.free) - len(taken) :]
            page.active += len(taken)
            blocks += taken
            self._file(page)
        self._num_free -= n
        self._refs.update(dict.fromkeys(blocks, 1))
        return blocks

    def touch(self, blocks: Iterable[int]) -> None:
        """One more reference to each of these cached or active blocks (found by `lookup`)."""
        for block in blocks:
            refs = self._refs.get(block, 0)
            if not refs:
                self._revive(block)
            self._refs[block] = refs + 1

    def free(self, blocks: Iterable[int]) -> None:
        """One reference less to each; in the order of eviction, so pass a request's blocks tail first.

        A block without references stays cached if it has a hash. Raises PoolIntegrityError for a block that
        nobody holds.
        """
        touched: dict[int, _Page] = {}
        for block in blocks:
            refs = self._refs.get(block)
            if refs is None:
                raise PoolIntegrityError(f"{self.name} frees block {block}, which nobody holds")
            if refs > 1:
                self._refs[block] = refs - 1
                continue
            del self._refs[block]
            page = self._page_of[block]
            page.active -= 1
            touched[page.id] = page
            self._retire(block, page)
        now = self._page_pool.clock()
        for page in touched.values():
            page.last_used = now
            self._lru.pop(page.id, None)
            self._file(page)
        self._return_idle(self.reserve_pages)

    def cache_full_block(
        self, block_id: int, block_hash: bytes, token_ids: Sequence[int], parent_hash: bytes | None = None
    ) -> None:
        """Makes a full active block findable. Where the hash is known already, the first block keeps it."""
        if block_id not in self._refs:
            raise PoolIntegrityError(f"{self.name} caches block {block_id}, which nobody holds")
        if self.enable_caching and block_hash not in self._by_hash and block_id not in self._prefixes:
            self._by_hash[block_hash] = block_id
            self._prefixes[block_id] = _Prefix(block_hash, pack_tokens(token_ids), parent_hash)

    def lookup(
        self, block_hash: bytes, token_ids: Sequence[int], parent_hash: bytes | None = None
    ) -> int | None:
        """The block cached under `block_hash` if these tokens (and this parent, if given) are in it."""
        block = self._by_hash.get(block_hash)
        if block is None:
            return None
        prefix = self._prefixes[block]
        same_parent = parent_hash is None or prefix.parent is None or prefix.parent == parent_hash
        return block if same_parent and prefix.tokens == pack_tokens(token_ids) else None

    def reset_prefix_cache(self) -> int:
        """Forgets every prefix, also of blocks in use; returns how many."""
        forgotten = len(self._prefixes)
        self._prefixes.clear()
        self._by_hash.clear()
        for page in list(self._lru.values()):
            self._drop_cached(page, len(page.cached))
            self._file(page)
        self._return_idle(self.reserve_pages)
        return forgotten

    def release_idle_pages(self) -> None:
        """Returns the reserve too: for an engine that goes idle."""
        self._return_idle(0)

    # --- what the page pool uses (`Reclaimer`) ---------------------------------------------------------

    def idle_pages(self) -> list[int]:
        return list(self._idle)

    def evictable_pages(self, limit: int | None = None) -> list[EvictablePage]:
        """Pages of cached blocks only, least recently used first."""
        return [
            EvictablePage(page.id, page.last_used, len(page.cached) * self.cost_per_block)
            for page in islice(self._evictable.values(), limit)
        ]

    def num_reclaimable_pages(self) -> int:
        return len(self._idle) + len(self._evictable)

    @property
    def num_active_pages(self) -> int:
        """Pages with at least one block in use."""
        return len(self._pages) - self.num_reclaimable_pages()

    def evict_page(self, page: int) -> None:
        """Forgets a page without active blocks and all that is cached in it. Does not release it."""
        gone = self._pages[page]
        if gone.active:
            raise PoolIntegrityError(f"{self.name} is asked for page {page} with {gone.active} blocks in use")
        self._drop_cached(gone, len(gone.cached))
        self._forget_page(gone)

    def demand_pages(self) -> int:
        waiting = self.waiting_blocks()
        return self.num_active_pages + (-(-waiting // self.blocks_per_page) if waiting else 0)

    def preempt(self, pages_needed: int) -> int:
        before = self.num_active_pages
        while before - self.num_active_pages < pages_needed and self.preempt_newest():
            pass
        return before - self.num_active_pages

    # --- integrity ---------------------------------------------------------------------------------------

    def check_integrity(self) -> None:
        """Recounts everything. Raises PoolIntegrityError with what doesn't add up. O(blocks)."""
        if set(self._pages) != self._page_pool.pages_of(self.name):
            raise PoolIntegrityError(f"{self.name} and the page pool disagree about who owns which page")
        free = cached = 0
        for page in self._pages.values():
            self._check_page(page)
            free += len(page.free)
            cached += len(page.cached)
        if (free, cached) != (self._num_free, self._num_cached):
            raise PoolIntegrityError(
                f"{self.name} counts {self._num_free} free and {self._num_cached} cached blocks, "
                f"but has {free} and {cached}"
            )
        if any(self._by_hash.get(p.hash) != b for b, p in self._prefixes.items()) or len(
            self._by_hash
        ) != len(self._prefixes):
            raise PoolIntegrityError(f"{self.name}: hashes and blocks don't match")
        if any(refs < 1 for refs in self._refs.values()):
            raise PoolIntegrityError(f"{self.name} holds a block without references")

    def _check_page(self, page: _Page) -> None:
        blocks = self._blocks_in_page(page.id)
        active = {b for b in blocks if b in self._refs}
        if len(active) != page.active or sorted([*page.free, *page.cached, *active]) != list(blocks):
            raise PoolIntegrityError(
                f"{self.name}, page {page.id}: {page.active} active, {len(page.cached)} cached and "
                f"{len(page.free)} free blocks are not its {page.capacity}"
            )
        if any(b in self._prefixes for b in page.free) or any(b not in self._prefixes for b in page.cached):
            raise PoolIntegrityError(
                f"{self.name}, page {page.id}: a free block has a hash or a cached one has none"
            )
        filed = (page.id in self._lru, page.id in self._evictable, page.id in self._idle)
        cached_only = bool(page.cached) and not page.active
        if filed != (bool(page.cached), cached_only, len(page.free) == page.capacity):
            raise PoolIntegrityError(f"{self.name}, page {page.id} is on the wrong lists")

    # --- room ----------------------------------------------------------------------------------------------

    def _make_room(self, n: int) -> bool:
        """Gets at least `n` free blocks, least loss first; False where the rules don't allow it."""
        self._add_pages(self._page_pool.acquire_unused(self.name, self._pages_for(n - self._num_free)))
        beyond_own = n - self._num_free - self._num_cached
        if beyond_own > 0:
            pages = self._page_pool.acquire(self.name, self._pages_for(beyond_own))
            if pages is None:
                self._return_idle(self.reserve_pages)
                return False
            self._add_pages(pages)
        while self._num_free < n:
            self._evict_least_valuable(n - self._num_free)
        return True

    def _evict_least_valuable(self, blocks: int) -> None:
        """Frees up to `blocks` of the page used least recently, or takes another engine's if worth less."""
        oldest = next(iter(self._lru.values()))
        if self._page_pool.room(self.name):
            whole = EvictablePage(oldest.id, oldest.last_used, oldest.capacity * self.cost_per_block)
            if self._page_pool.cheapest_cached_page(self.name) < whole.value(self._page_pool.clock()):
                pages = self._page_pool.acquire(self.name, 1)
                if pages:
                    self._add_pages(pages)
                    return
        self._drop_cached(oldest, blocks)
        self._file(oldest)

    def _pages_for(self, blocks: int) -> int:
        return -(-blocks // self.blocks_per_page)

    def _add_pages(self, pages: Iterable[int]) -> None:
        for number in pages:
            blocks = self._blocks_in_page(number)
            page = _Page(number, len(blocks), list(reversed(blocks)))
            self._pages[number] = page
            self._page_of.update(dict.fromkeys(blocks, page))
            self._num_free += len(blocks)
            self._file(page)

    def _forget_page(self, page: _Page) -> None:
        self._num_free -= len(page.free)
        for block in page.free:
            del self._page_of[block]
        page.rank = None
        del self._pages[page.id]
        for pages in (self._lru, self._evictable, self._idle):
            pages.pop(page.id, None)

    def _return_idle(self, keep: int) -> None:
        """Gives empty pages back to the card, all but `keep` (a reserve against pages that go to and fro)."""
        while len(self._idle) > keep:
            page = next(reversed(self._idle.values()))
            self._forget_page(page)
            self._page_pool.release(self.name, [page.id])

    # --- one block, one page -----------------------------------------------------------------------

    def _fullest_page(self) -> _Page:
        """The page to fill next: pages in use before others, of these the one with the fewest free blocks."""
        while True:
            page = self._pages.get(self._heap[0][2])
            if page is not None and page.rank == self._heap[0]:
                return page
            heapq.heappop(self._heap)

    def _file(self, page: _Page) -> None:
        """Puts a page on the lists where its counts say that it belongs."""
        unused = not page.active
        rank = (unused, len(page.free), page.id) if page.free else None
        if rank != page.rank:
            page.rank = rank
            if rank is not None:
                heapq.heappush(self._heap, rank)
                if len(self._heap) > 64 + 4 * len(self._pages):
                    self._heap = sorted(p.rank for p in self._pages.values() if p.rank)
        _list_if(bool(page.cached), self._lru, page)
        _list_if(unused and bool(page.cached), self._evictable, page)
        _list_if(len(page.free) == page.capacity, self._idle, page)

    def _retire(self, block: int, page: _Page) -> None:
        """A block lost its last reference."""
        if block in self._prefixes:
            page.cached[block] = None
            self._num_cached += 1
        else:
            page.free.append(block)
            self._num_free += 1

    def _revive(self, block: int) -> None:
        """A cached block gets its first reference again."""
        page = self._page_of.get(block)
        if page is None or block not in page.cached:
            raise PoolIntegrityError(f"{self.name} touches block {block}, which is neither cached nor in use")
        del page.cached[block]
        self._num_cached -= 1
        page.active += 1
        self._file(page)

    def _drop_cached(self, page: _Page, count: int) -> None:
        """Frees the `count` cached blocks of `page` that are next for eviction. The caller files the page."""
        for block in list(islice(page.cached, count)):
            del page.cached[block]
            prefix = self._prefixes.pop(block, None)
            if prefix is not None:
                del self._by_hash[prefix.hash]
            page.free.append(block)
            self._num_cached -= 1
            self._num_free += 1


def _list_if(belongs: bool, pages: OrderedDict[int, _Page], page: _Page) -> None:
    """Adds `page` at the end, leaves it where it stands, or takes it off."""
    if not belongs:
        pages.pop(page.id, None)
    elif page.id not in pages:
        pages[page.id] = page
