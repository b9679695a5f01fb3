"""The KV blocks of one engine: reference counts, free blocks, and the prefix cache, page by page.

A block of an owned page is free, cached (unreferenced, but a hit finds it) or active (in use by requests).
Everything is kept by page, because only whole pages go back to the card's pool: new blocks come from the
fullest page in use (so others run empty), eviction goes page after page in order of last use, and a page
with nothing in it is returned but for a small reserve.
"""

from collections.abc import Callable, Container, Iterable, Sequence
from typing import Protocol

from onecard.engines.memory.block_book import BlockBook
from onecard.engines.memory.owned_pages import OwnedPage
from onecard.engines.memory.page_pool import PagePool, PoolIntegrityError
from onecard.engines.memory.reclaim import EvictablePage


class Requests(Protocol):
    """Whose blocks they are: what the pool asks of its engine."""

    def waiting_blocks(self) -> int:
        """How many blocks the waiting requests want."""
        return 0

    def preempt_newest(self) -> bool:
        """Free the blocks of the newest running request for another engine; False if nothing runs."""
        return False

    @property
    def move_blocks(self) -> Callable[[dict[int, int]], None] | None:
        """Called with {old: new}: copy K and V from old blocks to new ones and rewrite the block tables that
        name them. None: it can't, so a page that must go has its requests preempted."""
        return None


class _NoRequests(Requests):
    """Blocks that belong to no request: none waits, or can be preempted or moved."""


class BlockPool:
    """Blocks of one engine over the pages it owns; implements the page pool's `Reclaimer`.

    `blocks_in_page(page)` gives the block ids of a page. `cost_per_block` is what recomputing a cached block
    takes, in a unit common to the card's engines (FLOPs). Device loop only.
    """

    def __init__(
        self,
        engine_name: str,
        page_pool: PagePool,
        blocks_in_page: Callable[[int], range],
        enable_caching: bool = True,
        *,
        requests: Requests | None = None,
        cost_per_block: float = 1.0,
        reserve_pages: int = 1,
    ):
        self.name, self.enable_caching = engine_name, enable_caching
        self.cost_per_block, self.reserve_pages = cost_per_block, reserve_pages
        self._requests = requests or _NoRequests()
        self.blocks_per_page = min((len(blocks_in_page(p)) for p in range(page_pool.num_pages)), default=0)
        """Blocks that any page is sure to give."""
        if not self.blocks_per_page:
            raise ValueError(
                f"{engine_name}: a page of {page_pool.page_bytes:,} bytes may hold no whole block"
            )
        self._page_pool, self._blocks_in_page = page_pool, blocks_in_page
        self._book = BlockBook(blocks_in_page)
        self._keeps_idle = False

    # --- what the scheduler uses -------------------------------------------------------------------

    @property
    def num_used_blocks(self) -> int:
        """Blocks that requests hold."""
        return len(self._book.refs)

    def num_unreferenced(self, blocks: Iterable[int]) -> int:
        """How many of these cached or active blocks nobody holds: `num_free_blocks` counts them."""
        return sum(block not in self._book.refs for block in blocks)

    @property
    def max_blocks(self) -> int:
        """Blocks that are sure to be there at the most pages that the engine may have beside the homes of
        awake models: a request that needs more can't run."""
        return self._page_pool.most(self.name) * self.blocks_per_page

    @property
    def most_blocks_ever(self) -> int:
        """The same while every other model sleeps: a request that needs more will never run."""
        return self._page_pool.most_ever(self.name) * self.blocks_per_page

    @property
    def floor_blocks(self) -> int:
        """Blocks that the engine is guaranteed whatever others do."""
        return self._page_pool.floor(self.name) * self.blocks_per_page

    def num_free_blocks(self) -> int:
        """Blocks that `get_new_blocks` could hand out now, with no own request preempted.

        A lower bound in O(engines); counts what recalling other engines' loans would bring below the floor.
        """
        pages = self._page_pool.obtainable_pages(self.name)
        return self._book.num_free + self._book.num_cached + pages * self.blocks_per_page

    def get_new_blocks(self, n: int) -> list[int] | None:
        """`n` blocks with one reference each and undefined content; None (and none) on shortage."""
        if n > self._book.num_free and not self._make_room(n):
            return None
        return self._book.take(n)

    def touch(self, blocks: Iterable[int]) -> None:
        """One more reference to each of these cached or active blocks (found by `lookup`)."""
        for block in blocks:
            refs = self._book.refs.get(block, 0)
            if not refs and not self._book.revive(block):
                raise PoolIntegrityError(
                    f"{self.name} touches block {block}, which is neither cached nor in use"
                )
            self._book.refs[block] = refs + 1

    def free(self, blocks: Iterable[int]) -> None:
        """One reference less to each; in the order of eviction, so pass a request's blocks tail first.

        A block without references stays cached if it has a hash. Raises PoolIntegrityError for a block that
        nobody holds.
        """
        touched: dict[int, OwnedPage] = {}
        for block in blocks:
            refs = self._book.refs.get(block)
            if refs is None:
                raise PoolIntegrityError(f"{self.name} frees block {block}, which nobody holds")
            if refs > 1:
                self._book.refs[block] = refs - 1
                continue
            page = self._book.retire(block)
            touched[page.id] = page
        now = self._page_pool.clock()
        for page in touched.values():
            self._book.pages.file_as_newest(page, now)
        self._return_idle(self.reserve_pages)

    def cache_full_block(
        self, block_id: int, block_hash: bytes, token_ids: Sequence[int], parent_hash: bytes | None = None
    ) -> None:
        """Makes a full active block findable. Where the hash is known already, the first block keeps it."""
        if block_id not in self._book.refs:
            raise PoolIntegrityError(f"{self.name} caches block {block_id}, which nobody holds")
        if self.enable_caching:
            self._book.prefixes.put(block_id, block_hash, token_ids, parent_hash)

    def lookup(
        self, block_hash: bytes, token_ids: Sequence[int], parent_hash: bytes | None = None
    ) -> int | None:
        """The block cached under `block_hash` if these tokens (and this parent, if given) are in it."""
        return self._book.prefixes.find(block_hash, token_ids, parent_hash)

    def reset_prefix_cache(self) -> int:
        """Forgets every prefix, also of blocks in use; returns how many."""
        forgotten = self._book.forget_prefixes()
        self._return_idle(self.reserve_pages)
        return forgotten

    def release_idle_pages(self) -> None:
        """Returns all empty pages: for an engine that goes idle."""
        self._return_idle(0)

    def abandon(self) -> None:
        """Forgets all blocks, in use or cached, and returns all pages, whatever state the books are in."""
        self._book = BlockBook(self._blocks_in_page)
        self._page_pool.release(self.name, self._page_pool.pages_of(self.name))

    # --- what the page pool uses (`Reclaimer`) -----------------------------------------------------

    def idle_pages(self) -> list[int]:
        return list(self._book.pages.idle)

    def evictable_pages(self, limit: int | None = None) -> list[EvictablePage]:
        """Pages of cached blocks only, least valuable first."""
        return self._book.pages.evictable.cheapest(limit, self._page_pool.clock(), self.cost_per_block)

    def num_idle_pages(self) -> int:
        return len(self._book.pages.idle)

    def num_reclaimable_pages(self) -> int:
        return len(self._book.pages.idle) + len(self._book.pages.evictable)

    def num_active_pages(self) -> int:
        return len(self._book.pages.by_id) - self.num_reclaimable_pages()

    def is_active(self, page: int) -> bool:
        return self._book.pages.by_id[page].active > 0

    def evict_page(self, page: int) -> None:
        """Forgets a page without active blocks and all that is cached in it. Does not release it."""
        gone = self._book.pages.by_id[page]
        if gone.active:
            raise PoolIntegrityError(f"{self.name} loses page {page} with {gone.active} blocks in use")
        self._book.drop_cached(gone, len(gone.cached))
        self._book.forget_page(gone)

    def demand_pages(self) -> int:
        return self.num_active_pages() + self._pages_for(self._requests.waiting_blocks())

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
        it is worth less than what the move would push out."""
        gone = self._book.pages.by_id[page]
        while gone.active:
            if not self._move_out(gone, avoid) and not self._preempt_for("wake"):
                return False
        return True

    def note_preemption(self) -> None:
        """The engine itself has preempted a request of its own, for want of blocks."""
        self._page_pool.preemptions["memory"] += 1

    def _preempt_for(self, cause: str) -> bool:
        preempted = self._requests.preempt_newest()
        self._page_pool.preemptions[cause] += preempted
        return preempted

    def check_integrity(self) -> None:
        """Recounts everything. Raises PoolIntegrityError with what doesn't add up. O(blocks)."""
        faults = list(self._book.faults(self._page_pool.pages_of(self.name)))
        if faults:
            raise PoolIntegrityError(f"{self.name}: {'; '.join(faults)}")

    # --- room ----------------------------------------------------------------------------------------

    def _make_room(self, n: int) -> bool:
        """Gets at least `n` free blocks, least loss first; False where the rules don't allow it."""
        self._book.add_pages(
            self._page_pool.acquire_unused(self.name, self._pages_for(n - self._book.num_free))
        )
        beyond_own = n - self._book.num_free - self._book.num_cached
        if beyond_own > 0:
            pages = self._page_pool.acquire(self.name, self._pages_for(beyond_own))
            if pages is None:
                self._return_idle(self.reserve_pages)
                return False
            self._book.add_pages(pages)
        while self._book.num_free < n and (oldest := self._book.pages.oldest()) is not None:
            self._evict_least_valuable(oldest, n - self._book.num_free)
        return True

    def _make_room_outside(self, n: int, avoid: Container[int]) -> None:
        """As many free blocks outside the pages `avoid` as the rules allow, up to `n`."""
        while (missing := n - sum(len(page.free) for page in self._book.pages.with_room(avoid))) > 0:
            pages = self._page_pool.acquire_unused(self.name, self._pages_for(missing))
            oldest = self._book.pages.oldest(avoid)
            if not pages and oldest is not None:
                self._evict_least_valuable(oldest, missing)
            elif not (pages := pages or self._page_pool.acquire(self.name, 1) or []):
                return
            self._book.add_pages(pages)

    def _move_out(self, gone: OwnedPage, avoid: Container[int]) -> bool:
        """Moves blocks in use out of a page, as many as find room; False where none does."""
        move_blocks = self._requests.move_blocks
        if move_blocks is None:
            return False
        self._make_room_outside(gone.active, avoid)
        return self._book.move_out(gone, avoid, move_blocks)

    def _evict_least_valuable(self, oldest: OwnedPage, blocks: int) -> None:
        """Frees up to `blocks` cached ones of the `oldest` page, or takes another engine's page."""
        pages = self._page_pool.acquire(self.name, 1) if self._others_cache_less(oldest) else None
        if pages:
            self._book.add_pages(pages)
        else:
            self._book.drop_cached(oldest, blocks)

    def _others_cache_less(self, page: OwnedPage) -> bool:
        """Whether a cached page of another engine may go and is worth less than this one when full."""
        pool = self._page_pool
        own = EvictablePage(page.id, page.last_used, page.capacity * self.cost_per_block)
        return pool.room(self.name) > 0 and pool.cheapest_cached_page(self.name) < own.value(pool.clock())

    def _pages_for(self, blocks: int) -> int:
        return -(-blocks // self.blocks_per_page)

    def _return_idle(self, keep: int) -> None:
        """Gives empty pages back to the card, all but `keep` (a reserve against pages that go to and fro)."""
        idle = self._book.pages.idle
        while len(idle) > keep and not self._keeps_idle:
            page = next(reversed(idle.values()))
            self._book.forget_page(page)
            self._page_pool.release(self.name, [page.id])
