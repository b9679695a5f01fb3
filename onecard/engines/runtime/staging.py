"""Moves a step's small arrays to the card in one copy, and its results back, without waiting for it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

_ALIGN = 16


@dataclass
class _Slot:
    pinned: torch.Tensor
    copied: torch.cuda.Event


class Staging:
    """For a CPU: the arrays themselves, as tensors. For a GPU: a ring of pinned buffers, each used again once
    its copy is over, so that a host array may change as soon as `to_device` has returned."""

    SLOTS = 4

    def __init__(self, device: torch.device):
        self._device = device
        self._slots: list[_Slot] = []
        self._next = 0

    def to_device(self, arrays: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """The arrays (any shapes and dtypes, C order) as tensors on the device.

        On a CPU they share the arrays' memory.
        """
        if self._device.type != "cuda":
            return [torch.from_numpy(array) for array in arrays]
        starts, nbytes = _offsets(arrays)
        on_device = torch.empty(nbytes, dtype=torch.uint8, device=self._device)
        self.copy_into(on_device, arrays)
        return [
            _as(on_device[start : start + array.nbytes], array)
            for start, array in zip(starts, arrays, strict=True)
        ]

    def copy_into(self, target: torch.Tensor, arrays: Sequence[np.ndarray]) -> None:
        """The same into `target` `[nbytes]` uint8, one after another, each at a multiple of 16 bytes."""
        starts, nbytes = _offsets(arrays)
        if target.device.type != "cuda":
            _pack(target, starts, arrays)
            return
        slot = self._slot(nbytes)
        _pack(slot.pinned, starts, arrays)
        target[:nbytes].copy_(slot.pinned[:nbytes], non_blocking=True)
        slot.copied.record()

    def _slot(self, nbytes: int) -> _Slot:
        if len(self._slots) < self.SLOTS:
            self._slots.append(_Slot(_pinned(nbytes), torch.cuda.Event()))
            return self._slots[-1]
        slot = self._slots[self._next]
        self._next = (self._next + 1) % self.SLOTS
        slot.copied.synchronize()
        if slot.pinned.numel() < nbytes:
            slot.pinned = _pinned(nbytes)
        return slot


def to_host(tensor: torch.Tensor, shared: bool = False) -> torch.Tensor:
    """A copy on the host that is whole when the step is. On a CPU the tensor itself, if it isn't `shared`."""
    if tensor.is_cpu:
        return tensor.clone() if shared else tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def staged_bytes(arrays: Sequence[np.ndarray]) -> int:
    """What `copy_into` needs for these."""
    return _offsets(arrays)[1]


def staged_views(buffer: torch.Tensor, arrays: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """Where `copy_into` puts arrays of these shapes in `buffer`, as tensors that share its memory."""
    starts, _ = _offsets(arrays)
    return [_as(buffer[s : s + a.nbytes], a) for s, a in zip(starts, arrays, strict=True)]


def _offsets(arrays: Sequence[np.ndarray]) -> tuple[list[int], int]:
    starts, end = [], 0
    for array in arrays:
        starts.append(end)
        end += -(-array.nbytes // _ALIGN) * _ALIGN
    return starts, end


def _pack(target: torch.Tensor, starts: Sequence[int], arrays: Sequence[np.ndarray]) -> None:
    packed = target.numpy()
    for start, array in zip(starts, arrays, strict=True):
        packed[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _as(raw: torch.Tensor, array: np.ndarray) -> torch.Tensor:
    return raw.view(torch.from_numpy(np.empty(0, array.dtype)).dtype).view(array.shape)


def _pinned(nbytes: int) -> torch.Tensor:
    return torch.empty(max(nbytes, 1 << 16) * 2, dtype=torch.uint8, pin_memory=True)
