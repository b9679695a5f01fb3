"""The KV blocks of one engine: reference counts, free blocks, and the prefix cache, page by page.

A block of an owned page is in one of three states:

    free     nothing in it                     -> `OwnedPage.free`
    cached   unreferenced, but a known prefix  -> `OwnedPage.cached`; a hit or an eviction takes it out
    active   in use by `ref` requests          -> `_refs`

Everything is kept by page, because only whole pages go back to the card's pool: new blocks come from the
fullest page in use (so others run empty), eviction goes page after page in order of last use, and a page
with nothing in it is returned but for a small reserve.
"""

from collections.abc import Callable, Container, Iterable, Sequence
from itertools import islice

from onecard.engines.memory.owned_pages import OwnedPage, OwnedPages
from onecard.engines.memory.page_pool import PagePool, PoolIntegrityError
from onecard.engines.memory.prefix_table import PrefixTable
from onecard.engines.memory.reclaim import EvictablePage


class BlockPool:
    """Blocks of one engine over the pages it owns; implements the page pool's `Reclaimer`.

    `blocks_in_page(page)` gives the block ids of a page. `cost_per_block` is what recomputing a cached block
    takes, in a unit common to the card's engines (FLOPs). `waiting_blocks()` says how many blocks the waiting
    requests want; `preempt_newest()` frees the blocks of the newest running request and says whether it found
    one. `move_blocks({old: new})` copies K and V from old blocks to new ones and rewrites the block tables
    that name them; without it, a page that must go has its requests preempted. Device loop only.
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
        move_blocks: Callable[[dict[int, int]], None] | None = None,
    ):
        self.name, self.enable_caching = engine_name, enable_caching
        self.cost_per_block, self.reserve_pages = cost_per_block, reserve_pages
        self.waiting_blocks = waiting_blocks or (lambda: 0)
        self.preempt_newest = preempt_newest or (lambda: False)
        self.move_blocks = move_blocks
        self.blocks_per_page = min((len(blocks_in_page(p)) for p in range(page_pool.num_pages)), default=0)
        """Blocks that any page is sure to give."""
        if not self.blocks_per_page:
            raise ValueError(
                f"{engine_name}: a page of {page_pool.page_bytes:,} bytes may hold no whole block"
            )
        self._page_pool, self._blocks_in_page = page_pool, blocks_in_page
        self._pages = OwnedPages()
        self._page_of: dict[int, OwnedPage] = {}
        self._refs: dict[int, int] = {}
        self._prefixes = PrefixTable()
        self._num_free = self._num_cached = 0
        self._keeps_idle = False

    # --- what the scheduler uses -------------------------------------------------------------------

    @property
    def num_used_blocks(self) -> int:
        """Blocks that requests hold."""
        return len(self._refs)

    @property
    def max_blocks(self) -> int:
        """Blocks that are sure to be there at the most pages that the engine may have beside the homes of
        awake models: a request that needs more can't run."""
        return self._page_pool.most(self.name) * self.blocks_per_page

    def num_free_blocks(self) -> int:
        """Blocks that `get_new_blocks` could hand out now, with no own request preempted.

        A lower bound in O(engines); counts what recalling other engines' loans would bring below the floor.
        """
        pages = self._page_pool.obtainable_pages(self.name)
        return self._num_free + self._num_cached + pages * self.blocks_per_page

    def get_new_blocks(self, n: int) -> list[int] | None:
        """`n` blocks with one reference each and undefined content; None (and none) on shortage."""
        if n > self._num_free and not self._make_room(n):
            return None
        blocks: list[int] = []
        while len(blocks) < n:
            page = self._pages.fullest()
            blocks += page.take_free(n - len(blocks))
            self._pages.file(page)
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
        touched: dict[int, OwnedPage] = {}
        for block in blocks:
            refs = self._refs.get(block)
            if refs is None:
                raise PoolIntegrityError(f"{self.name} frees block {block}, which nobody holds")
            if refs > 1:
                self._refs[block] = refs - 1
                continue
            page = self._page_of[block]
            touched[page.id] = page
            self._retire(block, page)
        now = self._page_pool.clock()
        for page in touched.values():
            self._pages.file_as_newest(page, now)
        self._return_idle(self.reserve_pages)

    def cache_full_block(
        self, block_id: int, block_hash: bytes, token_ids: Sequence[int], parent_hash: bytes | None = None
    ) -> None:
        """Makes a full active block findable. Where the hash is known already, the first block keeps it."""
        if block_id not in self._refs:
            raise PoolIntegrityError(f"{self.name} caches block {block_id}, which nobody holds")
        if self.enable_caching:
            self._prefixes.put(block_id, block_hash, token_ids, parent_hash)

    def lookup(
        self, block_hash: bytes, token_ids: Sequence[int], parent_hash: bytes | None = None
    ) -> int | None:
        """The block cached under `block_hash` if these tokens (and this parent, if given) are in it."""
        return self._prefixes.find(block_hash, token_ids, parent_hash)

    def reset_prefix_cache(self) -> int:
        """Forgets every prefix, also of blocks in use; returns how many."""
        forgotten = len(self._prefixes)
        self._prefixes.clear()
        for page in list(self._pages.lru.values()):
            self._drop_cached(page, len(page.cached))
            self._pages.file(page)
        self._return_idle(self.reserve_pages)
        return forgotten

    def release_idle_pages(self) -> None:
        """Returns all empty pages: for an engine that goes idle."""
        self._return_idle(0)

    def abandon(self) -> None:
        """Forgets all blocks, in use or cached, and returns all pages, whatever state the books are in."""
        self._pages, self._prefixes, self._page_of, self._refs = OwnedPages(), PrefixTable(), {}, {}
        self._num_free = self._num_cached = 0
        self._page_pool.release(self.name, self._page_pool.pages_of(self.name))

    # --- what the page pool uses (`Reclaimer`) -----------------------------------------------------

    def idle_pages(self) -> list[int]:
        return list(self._pages.idle)

    def evictable_pages(self, limit: int | None = None) -> list[EvictablePage]:
        """Pages of cached blocks only, least recently used first."""
        pages, cost = islice(self._pages.evictable.values(), limit), self.cost_per_block
        return [EvictablePage(page.id, page.last_used, len(page.cached) * cost) for page in pages]

    def num_reclaimable_pages(self) -> int:
        return len(self._pages.idle) + len(self._pages.evictable)

    def num_active_pages(self) -> int:
        return len(self._pages.by_id) - self.num_reclaimable_pages()

    def is_active(self, page: int) -> bool:
        return self._pages.by_id[page].active > 0

    def evict_page(self, page: int) -> None:
        """Forgets a page without active blocks and all that is cached in it. Does not release it."""
        gone = self._pages.by_id[page]
        if gone.active:
            raise PoolIntegrityError(f"{self.name} loses page {page} with {gone.active} blocks in use")
        self._drop_cached(gone, len(gone.cached))
        self._forget_page(gone)

    def demand_pages(self) -> int:
        return self.num_active_pages() + self._pages_for(self.waiting_blocks())

    def preempt(self, pages_needed: int) -> int:
        """Keeps the pages that fall idle, so that the page pool takes what it may and leaves the floor."""
        before = self.num_active_pages()
        self._keeps_idle = True
        try:
            while before - self.num_active_pages() < pages_needed and self._preempt_for("floor"):
                pass
        finally:
            self._keeps_idle = False
        return before - self.num_active_pages()

    def vacate(self, page: int, avoid: Container[int]) -> bool:
        """Blocks in use move to pages outside `avoid` (`page` is in it); where there is no room, the newest
        requests are preempted until what is left has some. What is cached in the page stays for `evict_page`:
        it is worth less than what the move would push out.
        """
        gone = self._pages.by_id[page]
        while gone.active:
            if not self._move_out(gone, avoid) and not self._preempt_for("wake"):
                return False
        return True

    def note_preemption(self) -> None:
        """The engine itself has preempted a request of its own, for want of blocks."""
        self._page_pool.preemptions["memory"] += 1

    def _preempt_for(self, cause: str) -> bool:
        preempted = self.preempt_newest()
        self._page_pool.preemptions[cause] += preempted
        return preempted

    def check_integrity(self) -> None:
        """Recounts everything. Raises PoolIntegrityError with what doesn't add up. O(blocks)."""
        pages = self._pages.by_id
        for page in pages.values():
            if fault := self._pages.fault(page, self._blocks_in_page(page.id), self._refs, self._prefixes):
                raise PoolIntegrityError(f"{self.name}, page {page.id}: {fault}")
        (free, cached, total), active = self._pages.count_blocks(), len(self._refs)
        truths = {
            "it and the page pool agree who owns which page": set(pages)
            == self._page_pool.pages_of(self.name),
            "free and cached blocks are as counted": (free, cached) == (self._num_free, self._num_cached),
            "active + cached + free = all blocks": free + cached + active == total == len(self._page_of),
            "active blocks have references": all(refs > 0 for refs in self._refs.values()),
            "hashes and blocks match": self._prefixes.is_consistent(),
        }
        if untrue := [truth for truth, holds in truths.items() if not holds]:
            raise PoolIntegrityError(f"{self.name}: no longer true: {'; '.join(untrue)}")

    # --- room ----------------------------------------------------------------------------------------

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
        while self._num_free < n and (oldest := self._pages.oldest()) is not None:
            self._evict_least_valuable(oldest, n - self._num_free)
        return True

    def _make_room_outside(self, n: int, avoid: Container[int]) -> None:
        """As many free blocks outside the pages `avoid` as the rules allow, up to `n`."""
        while (missing := n - sum(len(page.free) for page in self._pages.with_room(avoid))) > 0:
            pages = self._page_pool.acquire_unused(self.name, self._pages_for(missing))
            oldest = self._pages.oldest(avoid)
            if not pages and oldest is not None:
                self._evict_least_valuable(oldest, missing)
            elif not (pages := pages or self._page_pool.acquire(self.name, 1) or []):
                return
            self._add_pages(pages)

    def _move_out(self, gone: OwnedPage, avoid: Container[int]) -> bool:
        """Moves blocks in use out of a page, as many as find room; False where none does."""
        if self.move_blocks is None:
            return False
        self._make_room_outside(gone.active, avoid)
        leaving = [block for block in self._blocks_in_page(gone.id) if block in self._refs]
        rooms: list[int] = []
        for page in self._pages.with_room(avoid):
            rooms += page.take_free(len(leaving) - len(rooms))
            self._pages.file(page)
        moves = dict(zip(leaving, rooms))
        if moves:
            self.move_blocks(moves)
        for old, new in moves.items():
            self._refs[new] = self._refs.pop(old)
            self._prefixes.move(old, new)
            gone.active -= 1
            gone.free.append(old)
        self._pages.file(gone)
        return bool(moves)

    def _evict_least_valuable(self, oldest: OwnedPage, blocks: int) -> None:
        """Frees up to `blocks` cached ones of the `oldest` page, or takes another engine's page."""
        pages = self._page_pool.acquire(self.name, 1) if self._others_cache_less(oldest) else None
        if pages:
            self._add_pages(pages)
        else:
            self._drop_cached(oldest, blocks)
            self._pages.file(oldest)

    def _others_cache_less(self, page: OwnedPage) -> bool:
        """Whether a cached page of another engine may go and is worth less than this one when full."""
        pool = self._page_pool
        own = EvictablePage(page.id, page.last_used, page.capacity * self.cost_per_block)
        return pool.room(self.name) > 0 and pool.cheapest_cached_page(self.name) < own.value(pool.clock())

    def _pages_for(self, blocks: int) -> int:
        return -(-blocks // self.blocks_per_page)

    def _add_pages(self, pages: Iterable[int]) -> None:
        for number in pages:
            blocks = self._blocks_in_page(number)
            page = OwnedPage(number, len(blocks), list(reversed(blocks)))
            self._pages.add(page)
            self._page_of.update(dict.fromkeys(blocks, page))
            self._num_free += len(blocks)

    def _forget_page(self, page: OwnedPage) -> None:
        self._num_free -= len(page.free)
        for block in page.free:
            del self._page_of[block]
        self._pages.remove(page)

    def _return_idle(self, keep: int) -> None:
        """Gives empty pages back to the card, all but `keep` (a reserve against pages that go to and fro)."""
        idle = self._pages.idle
        while len(idle) > keep and not self._keeps_idle:
            page = next(reversed(idle.values()))
            self._forget_page(page)
            self._page_pool.release(self.name, [page.id])

    def _retire(self, block: int, page: OwnedPage) -> None:
        """A block loses its last reference. The caller files the page."""
        del self._refs[block]
        page.active -= 1
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
        self._pages.file(page)

    def _drop_cached(self, page: OwnedPage, count: int) -> None:
        """Frees the `count` cached blocks of `page` that are next for eviction. The caller files the page."""
        for block in list(islice(page.cached, count)):
            del page.cached[block]
            self._prefixes.drop(block)
            page.free.append(block)
            self._num_cached -= 1
            self._num_free += 1
