"""Random lives of three engines with different blocks in one pool, asleep and awake, checked against a model
at each step."""

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from onecard.engines.memory.block_pool import BlockPool
from onecard.engines.memory.homes import Resident, can_be_awake
from onecard.engines.memory.page_pool import PagePool
from onecard.engines.memory.page_size import blocks_in_page
from onecard.engines.memory.prefixes import chain_root, hash_block

PAGE_BYTES = 64 * 1024
NUM_PAGES = 9
BLOCK_SIZE = 2
BLOCK_BYTES = {"bf16": 12 * 1024, "fp32": 30 * 1024, "even": 8 * 1024}
COSTS = {"bf16": 3.0, "fp32": 20.0, "even": 1.0}


@dataclass
class Request:
    """What a scheduler knows of a sequence: its tokens, its blocks, the hashes of the full ones."""

    tokens: list[int]
    blocks: list[int]
    hashes: list[bytes]


@dataclass
class Borrower:
    """A scheduler in small. `contents` is the model of the memory: what was last written to each block.

    `floor` and `ceiling` are its share while it is awake; while `stepping`, nothing can be preempted.
    """

    name: str
    floor: int
    ceiling: int
    home: range
    pool: BlockPool
    awake: bool = False
    stepping: bool = False
    owned_before: int = 0
    running: list[Request] = field(default_factory=list)
    waiting: list[Request] = field(default_factory=list)
    contents: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def move_blocks(self, moves: dict[int, int]) -> None:
        """All at once, as a copy on the device does; what was at the old places is gone."""
        held = {b for r in self.running for b in r.blocks}
        assert held.issuperset(moves)
        assert held.isdisjoint(moves.values()), "moved over a block in use"
        moved = {new: self.contents[old] for old, new in moves.items()}
        self.contents.update(dict.fromkeys(moves, (-1,)))
        self.contents.update(moved)
        for request in self.running:
            request.blocks = [moves.get(block, block) for block in request.blocks]

    def waiting_blocks(self):
        return sum(-(-len(request.tokens) // BLOCK_SIZE) for request in self.waiting)

    def preempt_newest(self) -> bool:
        if not self.running or self.stepping:
            return False
        request = self.running.pop()
        self.waiting.append(request)
        self.pool.free(request.blocks[::-1])
        request.blocks = []
        return True

    @property
    def resident(self) -> Resident:
        return Resident(self.name, self.home, floor_pages=self.floor)

    def chain(self, tokens: list[int]) -> list[bytes]:
        hashes, parent = [], chain_root(self.name)
        for start in range(0, len(tokens) - BLOCK_SIZE + 1, BLOCK_SIZE):
            parent = hash_block(parent, tokens[start : start + BLOCK_SIZE])
            hashes.append(parent)
        return hashes

    def start(self, tokens: list[int]) -> bool:
        """Prefix hits, then new blocks, then every full block cached: all or nothing."""
        hashes = self.chain(tokens)
        hits = []
        for i, block_hash in enumerate(hashes):
            block = self.pool.lookup(block_hash, tokens[i * BLOCK_SIZE : (i + 1) * BLOCK_SIZE])
            if block is None:
                break
            assert self.contents[block] == tuple(tokens[: (i + 1) * BLOCK_SIZE]), "a hit on other content"
            hits.append(block)
        self.pool.touch(hits)
        missing = -(-len(tokens) // BLOCK_SIZE) - len(hits)
        new = self.get(missing)
        if new is None:
            self.pool.free(hits[::-1])
            return False
        request = Request(tokens, hits + new, hashes)
        for i in range(len(hits), len(request.blocks)):
            self.write(request, i)
        self.running.append(request)
        return True

    def grow(self, request: Request, token: int) -> bool:
        if len(request.tokens) % BLOCK_SIZE == 0:
            new = self.get(1)
            if new is None:
                return False
            request.blocks += new
        request.tokens = [*request.tokens, token]
        request.hashes = self.chain(request.tokens)
        self.write(request, len(request.blocks) - 1)
        return True

    def get(self, n: int) -> list[int] | None:
        """New blocks, with what must hold of them, granted or refused."""
        page_pool, used = self.pool._page_pool, self.pool.num_used_blocks
        promised, estimate = page_pool.floor(self.name), self.pool.num_free_blocks()
        accounts = {t: a.reclaimer for t, a in page_pool._accounts.items() if t != self.name}
        others = {t: reclaimer.num_active_pages() for t, reclaimer in accounts.items()}
        blocks = self.pool.get_new_blocks(n)
        held = {b for r in self.running for b in r.blocks}
        if blocks is None:
            assert n > estimate, "refused what num_free_blocks promised"
            assert used + n > promised * self.pool.blocks_per_page - self.fragments(), (
                "refused what the floor guarantees"
            )
            assert self.pool.num_used_blocks == used
            return None
        assert len(set(blocks)) == n
        assert not set(blocks) & held, "handed out a block in use"
        for name, before in others.items():
            now = accounts[name].num_active_pages()
            if before <= page_pool.floor(name):
                assert now == before, "took pages in use within a floor"
        return blocks

    def fragments(self) -> int:
        """Blocks that partly used pages can't give: at most a page's worth each."""
        return (self.pool.num_active_pages() + 1) * (self.pool.blocks_per_page + 1)

    def write(self, request: Request, i: int) -> None:
        end = min((i + 1) * BLOCK_SIZE, len(request.tokens))
        self.contents[request.blocks[i]] = tuple(request.tokens[:end])
        if end == (i + 1) * BLOCK_SIZE:
            parent = request.hashes[i - 1] if i else chain_root(self.name)
            tokens = request.tokens[end - BLOCK_SIZE : end]
            self.pool.cache_full_block(request.blocks[i], request.hashes[i], tokens, parent)

    def end(self, request: Request) -> None:
        self.running.remove(request)
        self.pool.free(request.blocks[::-1])


names = st.sampled_from(sorted(BLOCK_BYTES))
# Prompts of two families, so that prefixes are often shared, and of lengths that soon fill the pool.
tokens = st.builds(
    lambda family, n: [(i % 5) * family for i in range(n)], st.integers(1, 2), st.integers(1, 40)
)
index = st.integers(0, 1 << 16)


class PoolMachine(RuleBasedStateMachine):
    """Rules are what schedulers do; invariants are those of the design."""

    @initialize(
        floors=st.tuples(*[st.integers(0, 3)] * 2, st.integers(0, 1)),
        extra=st.tuples(*[st.sampled_from([9, 4, 1])] * 3),
        reserve=st.integers(0, 2),
        homes=st.tuples(*[st.tuples(st.integers(0, 6), st.integers(1, 3))] * 3),
        kept_for_last=st.booleans(),
    )
    def open(self, floors, extra, reserve, homes, kept_for_last):
        self.time = 0.0
        self.page_pool = PagePool(NUM_PAGES, PAGE_BYTES, self.clock)
        self.borrowers = {}
        for (name, block_bytes), floor, more, home in zip(BLOCK_BYTES.items(), floors, extra, homes):
            ceiling = min(NUM_PAGES, max(1, floor + more))
            borrower = Borrower(name, floor, ceiling, range(home[0], sum(home)), None)
            borrower.pool = BlockPool(
                name,
                self.page_pool,
                lambda page, block_bytes=block_bytes: blocks_in_page(page, PAGE_BYTES, block_bytes),
                cost_per_block=COSTS[name],
                reserve_pages=reserve,
                requests=borrower,
            )
            self.page_pool.add_engine(name, 0, 0, borrower.pool)
            self.borrowers[name] = borrower
        if kept_for_last:
            self.page_pool.keep_for_last({page for t in self.borrowers.values() for page in t.home})
        for name in self.borrowers:
            self.wake(name, set())

    def clock(self):
        self.time += 1.0
        return self.time

    @rule(name=names, tokens=tokens)
    def start(self, name, tokens):
        self.borrowers[name].start(tokens)

    @rule(name=names, base=index, keep=st.integers(1, 50), more=tokens)
    def start_with_shared_prefix(self, name, base, keep, more):
        borrower = self.borrowers[name]
        if borrower.running:
            shared = borrower.running[base % len(borrower.running)].tokens[:keep]
            borrower.start([*shared, *more])

    @rule(name=names, which=index, token=st.integers(0, 1), times=st.integers(1, 5))
    def decode(self, name, which, token, times):
        borrower = self.borrowers[name]
        if borrower.running:
            request = borrower.running[which % len(borrower.running)]
            for _ in range(times):
                while request in borrower.running and not borrower.grow(request, token):
                    borrower.preempt_newest()

    @rule(name=names, which=index, all_of_them=st.booleans())
    def finish(self, name, which, all_of_them):
        borrower = self.borrowers[name]
        for _ in range(len(borrower.running) if all_of_them else min(1, len(borrower.running))):
            borrower.end(borrower.running[which % len(borrower.running)])

    @rule(name=names)
    def resume(self, name):
        borrower = self.borrowers[name]
        if borrower.waiting and borrower.start(borrower.waiting[-1].tokens):
            borrower.waiting.pop()

    @rule(name=names, what=st.sampled_from(["cancel", "idle", "reset"]))
    def keep_house(self, name, what):
        borrower = self.borrowers[name]
        if what == "cancel":
            borrower.waiting.clear()
        elif what == "idle":
            borrower.pool.release_idle_pages()
        else:
            borrower.pool.reset_prefix_cache()
            first = [(r.hashes[0], r.tokens[:BLOCK_SIZE]) for r in borrower.running if r.hashes]
            assert not any(borrower.pool.lookup(*known) for known in first)

    @rule(name=names)
    def sleep(self, name):
        borrower = self.borrowers[name]
        if not borrower.awake:
            return
        self.empty(borrower)
        self.page_pool.set_share(name, 0, 0)
        self.page_pool.release_home(name)
        borrower.awake = False
        assert borrower.pool.num_free_blocks() == 0
        assert not borrower.start([1, 2, 3]), "asleep it gets no block"

    @rule(name=names, stepping=st.sets(names, max_size=1))
    def wake(self, name, stepping):
        """The home is taken whatever lies in it, unless a step in flight holds a page."""
        borrower = self.borrowers[name]
        residents = [t.resident for t in self.borrowers.values() if t.awake]
        if borrower.awake or not can_be_awake([*residents, borrower.resident], NUM_PAGES):
            return
        running = {t.name: list(t.running) for t in self.borrowers.values()}
        for other in stepping:
            self.borrowers[other].stepping = True
        claimed = self.page_pool.claim_home(name, borrower.home)
        for other in stepping:
            self.borrowers[other].stepping = False
        assert claimed or stepping, "nothing stands in the way"
        for other in self.borrowers.values():
            still = [r for r in other.running if r in running[other.name]]
            assert other.running == still == running[other.name][: len(still)], "the newest go first"
            other.owned_before = max(other.owned_before, self.page_pool.owned(other.name))
        assert self.page_pool.home(name) == (frozenset(borrower.home) if claimed else frozenset())
        if claimed:
            self.page_pool.set_share(name, borrower.floor, borrower.ceiling)
            borrower.awake = True

    @rule(name=names, floor=st.integers(0, 3), more=st.integers(0, 9))
    def resize(self, name, floor, more):
        borrower = self.borrowers[name]
        residents = [t.resident for t in self.borrowers.values() if t.awake and t is not borrower]
        if not borrower.awake or not can_be_awake(
            [*residents, Resident(name, borrower.home, floor_pages=floor)], NUM_PAGES
        ):
            return
        borrower.floor, borrower.ceiling = floor, min(NUM_PAGES, max(1, floor + more))
        self.page_pool.set_share(name, borrower.floor, borrower.ceiling)

    @rule(name=names)
    def claim_the_floor(self, name):
        """An engine with nothing running gets its whole floor, whatever the others do."""
        borrower = self.borrowers[name]
        if not borrower.awake:
            return
        while borrower.running:
            borrower.end(borrower.running[0])
        borrower.waiting.clear()
        whole_floor = borrower.floor * borrower.pool.blocks_per_page
        if whole_floor:
            assert borrower.start([i % 7 for i in range(whole_floor * BLOCK_SIZE)]), "the floor is guaranteed"
            assert self.page_pool.owned(name) >= min(borrower.floor, borrower.pool.demand_pages())

    def drain(self):
        """After all requests end and all caches are evicted every page is free."""
        for borrower in self.borrowers.values():
            self.sleep(borrower.name)
            self.page_pool.remove_engine(borrower.name)
        assert self.page_pool.free_pages == NUM_PAGES

    def empty(self, borrower):
        while borrower.running:
            borrower.end(borrower.running[-1])
        borrower.waiting.clear()
        borrower.pool.reset_prefix_cache()
        borrower.pool.release_idle_pages()
        borrower.contents.clear()

    @invariant()
    def books_add_up(self):
        self.page_pool.check_integrity()
        owned = {name: self.page_pool.pages_of(name) for name in self.borrowers}
        homes = {name: frozenset(t.home) for name, t in self.borrowers.items() if t.awake}
        assert homes == {name: home for name in self.borrowers if (home := self.page_pool.home(name))}
        everything = [*owned.values(), *homes.values()]
        assert self.page_pool.free_pages + sum(map(len, everything)) == NUM_PAGES
        assert can_be_awake([t.resident for t in self.borrowers.values() if t.awake], NUM_PAGES)
        for name, borrower in self.borrowers.items():
            borrower.pool.check_integrity()
            assert len(owned[name]) <= max(borrower.ceiling, borrower.owned_before), "grows above its ceiling"
            borrower.owned_before = len(owned[name])
            self.requests_hold_their_blocks(borrower, owned[name])
        assert sum(map(len, everything)) == len(frozenset().union(*everything))

    def requests_hold_their_blocks(self, borrower, pages):
        held = [b for r in borrower.running for b in r.blocks]
        assert borrower.pool.num_used_blocks == len(set(held))
        for block in set(held):
            assert borrower.pool._book.refs[block] == held.count(block)
            first = block * BLOCK_BYTES[borrower.name]
            last = first + BLOCK_BYTES[borrower.name] - 1
            assert first // PAGE_BYTES == last // PAGE_BYTES, "a block across a page boundary"
            assert first // PAGE_BYTES in pages, "a block in somebody else's page"
        for request in borrower.running:
            for i, block in enumerate(request.blocks):
                shared = min((i + 1) * BLOCK_SIZE, len(request.tokens))
                assert borrower.contents[block][:shared] == tuple(request.tokens[:shared]), (
                    "content overwritten"
                )

    def teardown(self):
        if hasattr(self, "borrowers"):
            self.drain()


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(
    max_examples=250, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
