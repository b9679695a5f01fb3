"""Whose memory a model's weights lie in."""

from typing import Protocol

import torch


class WeightAllocator(Protocol):
    """Hands out the memory of every weight, by name, so that its owner can account for it or place it."""

    def empty(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A contiguous tensor on the allocator's device, not initialised; the model keeps it for life."""
        ...

    def count(self, name: str, nbytes: int) -> None:
        """`nbytes` are held for `name` by a library that packs weights into memory of its own."""
        ...


class HeapAllocator:
    """Takes weights from torch's own allocator. `nbytes` is what is held so far."""

    def __init__(self, device: torch.device):
        self.device = device
        self.nbytes = 0

    def empty(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        tensor = torch.empty(shape, dtype=dtype, device=self.device)
        self.nbytes += tensor.nbytes
        return tensor

    def count(self, name: str, nbytes: int) -> None:
        self.nbytes += nbytes
