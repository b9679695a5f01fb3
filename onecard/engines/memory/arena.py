"""The memory of a card that models share: one tensor of bytes, allocated once, never freed while serving; and
how a model's K and V lie in it: block-major, all layers of a block together."""

import mmap
from contextlib import suppress
from dataclasses import dataclass

import torch

from onecard.engines.memory.page_size import blocks_in_page, choose_page_bytes, edge_waste, min_blocks_in_page


class DeviceArena:
    """`nbytes` on `device` as one `uint8` tensor: `num_pages` equal pages of `page_bytes`, the rest left out.

    The content is undefined and stays so: a page that changes hands holds stale bytes of another dtype, which
    may be NaN patterns. Readers must mask their loads.

    On a CPU the memory is mapped without being there yet: a page takes memory once it is written to, and
    `discard` gives it back.
    """

    def __init__(self, nbytes: int, page_bytes: int, device: torch.device | str = "cpu"):
        if page_bytes <= 0 or nbytes < 0:
            raise ValueError(f"an arena of {nbytes} bytes can't be cut into pages of {page_bytes} bytes")
        self.page_bytes = page_bytes
        self.num_pages = nbytes // page_bytes
        self._map: mmap.mmap | None = None
        try:
            self.tensor = self._allocate(torch.device(device))
        except (RuntimeError, OSError) as error:
            raise MemoryError(
                f"can't allocate an arena of {self.nbytes:,} bytes on {device} ({error}): "
                "give the card less `memory:`"
            ) from error

    @property
    def nbytes(self) -> int:
        return self.num_pages * self.page_bytes

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def discard(self, pages: range) -> None:
        """Forgets what `pages` (consecutive ones) hold; on a CPU their memory goes back to the system.

        An operating system's page that is only partly theirs stays.
        """
        self._advise("MADV_DONTNEED", pages)

    def prefer_large_pages(self, pages: range) -> None:
        """Asks a CPU's system for large pages (2 MiB) here, for memory that is written as a whole: 256 MiB
        of weights are copied in 26 ms instead of 93."""
        self._advise("MADV_HUGEPAGE", pages)

    def _advise(self, advice: str, pages: range) -> None:
        """Where the system has no such advice, or no ear for it, nothing is lost."""
        if self._map is None or not hasattr(mmap, advice):
            return
        first = -(-pages.start * self.page_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        last = pages.stop * self.page_bytes // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last:
            with suppress(OSError):
                self._map.madvise(getattr(mmap, advice), first, last - first)

    def _allocate(self, device: torch.device) -> torch.Tensor:
        if device.type != "cpu" or not self.nbytes:
            return torch.empty(self.nbytes, dtype=torch.uint8, device=device)
        # Private: shared mappings have no large pages, and count as a file's.
        self._map = mmap.mmap(-1, self.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return torch.frombuffer(self._map, dtype=torch.uint8)


__all__ = ["KVLayout", "choose_page_bytes", "edge_waste", "min_blocks_in_page"]


@dataclass(frozen=True)
class KVLayout:
    """The grid that a model lays over the whole arena.

    Every model reshapes the same bytes in its own dtype; models never collide because each uses only blocks
    that lie wholly inside pages it owns (`blocks_in_page`).
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype

    @property
    def block_bytes(self) -> int:
        """Bytes of `block_size` tokens, all layers, K and V."""
        return 2 * self.num_layers * self.block_size * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    def view(self, arena: DeviceArena) -> torch.Tensor:
        """The arena as `[n, layers, 2, block_size, kv_heads, head_dim]`, sharing its memory: blocks
        that a page boundary cuts are among the n."""
        n = arena.nbytes // self.block_bytes
        grid = arena.tensor[: n * self.block_bytes].view(self.dtype)
        return grid.view(n, self.num_layers, 2, self.block_size, self.num_kv_heads, self.head_dim)

    def blocks_in_page(self, page: int, page_bytes: int) -> range:
        """Ids of the blocks that lie wholly inside `page`."""
        return blocks_in_page(page, page_bytes, self.block_bytes)
