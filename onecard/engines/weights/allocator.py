"""Whose memory a model's weights lie in."""

import math
from typing import Protocol

import torch

from onecard.engines.memory.arena import DeviceArena
from onecard.engines.memory.homes import ALIGNMENT
from onecard.engines.weights.checkpoint import LoadError
from onecard.registry.units import format_bytes as human


class WeightAllocator(Protocol):
    """Hands out the memory of every weight, by name, so that its owner can account for it or place it."""

    def empty(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A contiguous tensor on the allocator's device, not initialised; the model keeps it for life."""
        ...

    def count(self, name: str, nbytes: int) -> None:
        """`nbytes` are held for `name` by a library that packs weights into memory of its own."""
        ...


def aligned(nbytes: int) -> int:
    """What a weight of `nbytes` takes of a home, where each begins at a multiple of `ALIGNMENT`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class HeapAllocator:
    """Takes weights from torch's own allocator. `nbytes` is what they would take of a home."""

    def __init__(self, device: torch.device):
        self.device = device
        self.nbytes = 0

    def empty(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        tensor = torch.empty(shape, dtype=dtype, device=self.device)
        self.nbytes += aligned(tensor.nbytes)
        return tensor

    def count(self, name: str, nbytes: int) -> None:
        self.nbytes += nbytes


class HomeAllocator:
    """Takes weights from a home, the `pages` of `arena`: views of it, one after another from its start.

    What a library packs into memory of its own can't lie there. It is *booked*: the home keeps as many bytes
    for it and leaves them untouched, so that the arena's ledger holds while the real bytes lie on the heap;
    on a CPU an untouched page takes no memory. The caller owns the pages; what was in them is forgotten.
    """

    def __init__(self, arena: DeviceArena, pages: range):
        self._arena = arena
        self._start = self._cursor = aligned(pages.start * arena.page_bytes)
        self._end = pages.stop * arena.page_bytes
        self.booked_bytes = 0
        arena.discard(pages)
        arena.prefer_large_pages(pages)

    @property
    def weights(self) -> torch.Tensor:
        """The part of the home that weights lie in, `[n]` uint8: what a copy must save."""
        return self._arena.tensor[self._start : self._cursor]

    def empty(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Raises `LoadError` when the home is full."""
        start, nbytes = self._cursor, math.prod(shape) * dtype.itemsize
        self._check_room(name, nbytes)
        self._cursor += aligned(nbytes)
        return self._arena.tensor[start : start + nbytes].view(dtype).view(shape)

    def count(self, name: str, nbytes: int) -> None:
        """Raises `LoadError` when the home is full."""
        self._check_room(name, nbytes)
        self.booked_bytes += nbytes

    def _check_room(self, name: str, nbytes: int) -> None:
        left = self._end - self._cursor - self.booked_bytes
        if nbytes > left:
            raise LoadError(
                f"{name} takes {human(nbytes)}, but of its model's home of {human(self._end - self._start)} "
                f"only {human(max(left, 0))} are left. Weights beyond float16's range take more than their "
                "headers foretell: set `dtype:` to bfloat16 or float32"
            )
