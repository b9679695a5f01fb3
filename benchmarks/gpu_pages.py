"""A page changing hands between two engines: the pool's own work, beside the driver's calls for the same.

Two block pools of different layouts share the pages of one arena on the card. `free`: engine B takes a page
that A gave back. `idle`, `cached`: B takes a page that A holds empty, or full of cached blocks. Times are of
the whole `acquire`, Python and all, with hundreds of pages on both sides. Handing over takes no call of the
driver; the others (virtual memory as in kvcached: create, map, give access; unmap, release) are timed on the
same card, a page of 2 MiB each.
"""

import ctypes
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from harness.gpu import card_facts, device_of, parse_arguments
from harness.report import Report

from onecard.engines.memory.arena import DeviceArena, KVLayout
from onecard.engines.memory.block_pool import BlockPool
from onecard.engines.memory.page_pool import PagePool
from onecard.engines.memory.prefixes import hash_block

PAGE_BYTES = 2 << 20
BLOCK_SIZE = 16
LAYOUTS = {
    "a": KVLayout(4, 2, 64, BLOCK_SIZE, torch.float32),
    "b": KVLayout(6, 4, 128, BLOCK_SIZE, torch.bfloat16),
}


class Pair:
    """Engines a and b over one arena, neither with a floor."""

    def __init__(self, pages: int, device: torch.device):
        self.arena = DeviceArena(pages * PAGE_BYTES, PAGE_BYTES, device)
        self.pages = PagePool(pages, PAGE_BYTES)
        self.blocks: dict[str, BlockPool] = {}
        for name, layout in LAYOUTS.items():
            blocks = BlockPool(
                name, self.pages, lambda page, lay=layout: lay.blocks_in_page(page, PAGE_BYTES)
            )
            self.pages.add_engine(name, 0, pages, blocks)
            self.blocks[name] = blocks

    def fill(self, name: str, cached: bool) -> None:
        """Give `name` every page, then free all its blocks, as cached ones or empty."""
        pool = self.blocks[name]
        blocks = pool.get_new_blocks(self.pages.free_pages * pool.blocks_per_page) or []
        parent: bytes | None = None
        for i, block in enumerate(blocks if cached else []):
            tokens = list(range(i, i + BLOCK_SIZE))
            parent_hash, parent = parent, hash_block(parent, tokens)
            pool.cache_full_block(block, parent, tokens, parent_hash)
        pool.free(blocks)


def main() -> None:
    args = parse_arguments(__doc__, pages=1024, repeats=400)
    device = device_of(args)
    if args.cpu:
        args.pages, args.repeats = 16, 8
    report = Report("gpu_pages", {**card_facts(device), "pages": args.pages, "page_bytes": PAGE_BYTES})
    for what, acquire in (("free", from_free), ("idle", from_idle), ("cached", from_cached)):
        repeats = args.repeats // 8 if what == "idle" else args.repeats  # fills the arena every time
        times = acquire(Pair(args.pages, device), repeats)
        report.add({"what": f"hand-over, {what}", "pages": len(times), **microseconds(times)})
    report.add({"what": "tokens survive", "ok": stale_bytes_are_overwritten(Pair(8, device))})
    if device.type == "cuda":
        try:
            for row in driver_rows(args.repeats):
                report.add(row)
        except (OSError, AttributeError, RuntimeError) as error:
            report.add({"what": "driver's virtual memory", "skipped": str(error)})
    report.write(args.json_out)


def microseconds(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    at = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return {"p50_us": round(median(ordered) * 1e6, 2), "p99_us": round(at * 1e6, 2)}


def timed(calls: Callable[[], Any], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = calls()
        times.append(time.perf_counter() - started)
        assert result, "the pool is out of pages"
    return times


def from_free(pair: Pair, repeats: int) -> list[float]:
    times: list[float] = []
    for _ in range(repeats):
        held = pair.pages.acquire("a", 1)
        assert held is not None
        pair.pages.release("a", held)
        times += timed(lambda: pair.pages.acquire("b", 1), 1)
        pair.pages.release("b", list(pair.pages.pages_of("b")))
    return times


def from_idle(pair: Pair, repeats: int) -> list[float]:
    """The blocks' pool keeps some empty pages as a reserve: those are what the other engine gets."""
    times: list[float] = []
    pool = pair.blocks["a"]
    for _ in range(repeats):
        pair.fill("a", cached=False)
        pair.pages.acquire("b", pair.pages.free_pages)
        assert pool.idle_pages(), "no page is kept idle"
        times += timed(lambda: pair.pages.acquire("b", 1), 1)
        pair.pages.release("b", list(pair.pages.pages_of("b")))
    return times


def from_cached(pair: Pair, repeats: int) -> list[float]:
    pair.fill("a", cached=True)
    if free := pair.pages.free_pages:
        pair.pages.acquire("b", free)
    return timed(lambda: pair.pages.acquire("b", 1), min(repeats, pair.pages.owned("a")))


def stale_bytes_are_overwritten(pair: Pair) -> bool:
    """a's page full of NaN goes to b, whose numbers then read back from its own view of the arena."""
    pair.arena.tensor.fill_(0xFF)
    pair.fill("a", cached=True)
    (block,) = pair.blocks["b"].get_new_blocks(1) or []
    view = LAYOUTS["b"].view(pair.arena)
    view[block] = 1.5
    pair.pages.check_integrity()
    return bool((view[block] == 1.5).all())


# --- the driver's virtual memory ------------------------------------------------------------------------


class _Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _AllocationFlags(ctypes.Structure):
    _fields_ = (
        ("compression", ctypes.c_ubyte),
        ("rdma", ctypes.c_ubyte),
        ("usage", ctypes.c_ushort),
        ("reserved", ctypes.c_ubyte * 4),
    )


class _AllocationProperties(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location", _Location),
        ("win32", ctypes.c_void_p),
        ("flags", _AllocationFlags),
    )


class _AccessDescription(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = (("location", _Location), ("flags", ctypes.c_int))


def driver_rows(repeats: int) -> list[dict[str, Any]]:
    """Microseconds of each of the calls that remapping one page takes, and of all of them."""
    torch.zeros(1, device="cuda")  # makes the context current
    cuda = ctypes.CDLL("libcuda.so.1")
    pinned, on_device, read_write = 1, 1, 3
    where = _Location(on_device, torch.cuda.current_device())
    properties = _AllocationProperties(pinned, 0, where)
    access = _AccessDescription(where, read_write)
    size = ctypes.c_size_t(PAGE_BYTES)
    address, handle = ctypes.c_uint64(), ctypes.c_uint64()
    zero = ctypes.c_uint64(0)
    _check(cuda.cuMemAddressReserve(ctypes.byref(address), size, ctypes.c_size_t(0), zero, zero))
    steps: list[tuple[str, Callable[[], int]]] = [
        ("cuMemCreate", lambda: cuda.cuMemCreate(ctypes.byref(handle), size, ctypes.byref(properties), zero)),
        ("cuMemMap", lambda: cuda.cuMemMap(address, size, ctypes.c_size_t(0), handle, zero)),
        (
            "cuMemSetAccess",
            lambda: cuda.cuMemSetAccess(address, size, ctypes.byref(access), ctypes.c_size_t(1)),
        ),
        ("cuMemUnmap", lambda: cuda.cuMemUnmap(address, size)),
        ("cuMemRelease", lambda: cuda.cuMemRelease(handle)),
    ]
    times: dict[str, list[float]] = {name: [] for name, _ in steps}
    for _ in range(repeats):
        for name, call in steps:
            started = time.perf_counter()
            _check(call())
            times[name].append(time.perf_counter() - started)
    _check(cuda.cuMemAddressFree(address, size))
    whole = [sum(turn) for turn in zip(*times.values())]
    return [{"what": name, **microseconds(values)} for name, values in times.items()] + [
        {"what": "unmap here, map there: all five calls", **microseconds(whole)}
    ]


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"the driver answered with error {status}")


if __name__ == "__main__":
    main()
