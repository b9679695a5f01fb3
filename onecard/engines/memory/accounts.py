"""What a page pool knows of one engine, and what it tells of it."""

from dataclasses import dataclass, field

from onecard.engines.memory.reclaim import Reclaimer


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
