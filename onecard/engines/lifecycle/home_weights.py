"""A model's weights in their home in the arena: read there, saved from there, brought back there."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from onecard.engines.memory.arena import DeviceArena
from onecard.engines.weights.allocator import HomeAllocator, WeightAllocator
from onecard.engines.weights.loader import LoadedModel, Progress

Load = Callable[[WeightAllocator, Progress | None], LoadedModel]
"""Reads a checkpoint into the memory that the allocator gives."""


@dataclass(frozen=True)
class CardMoment:
    """A point in the card's work: None on a CPU, where launched work is done work."""

    event: torch.cuda.Event | None

    @classmethod
    def now(cls, device: torch.device) -> "CardMoment":
        if device.type != "cuda":
            return cls(None)
        event = torch.cuda.Event()
        event.record()
        return cls(event)


class HomeWeights:
    """The home's pages must be claimed for the model while `load`, `save` and `restore` run; these run on a
    worker thread, beside the card's steps.

    What a library has packed for itself isn't in the home: it stays on the heap as long as `model` is held.
    """

    def __init__(self, arena: DeviceArena, home: range, load: Load):
        self.home = home
        self.model: nn.Module | None = None
        """None until `load`, and after `drop`."""
        self.weight_bytes = 0
        """Of the model when it was last loaded."""
        self._arena = arena
        self._load = load
        self._allocator: HomeAllocator | None = None
        self._saved: torch.Tensor | None = None

    @property
    def host_bytes(self) -> int:
        """Bytes of the copy that is kept while the model sleeps."""
        return 0 if self._saved is None else self._saved.nbytes

    def load(self, progress: Progress | None = None) -> None:
        """Read the checkpoint into the home. The same checkpoint gives the same addresses every time, so
        graphs that were captured over them hold."""
        self._allocator = HomeAllocator(self._arena, self.home)
        loaded = self._load(self._allocator, progress)
        self.model, self.weight_bytes = loaded.model, loaded.weight_bytes

    def save(self) -> None:
        """Copy the weights to host memory; the home may be given away then."""
        weights = self._weights()
        if not weights.is_cuda:
            # numpy copies on this thread alone: a team of OpenMP threads here would slow steps down.
            self._saved = torch.from_numpy(np.array(weights.numpy()))
            return
        self._saved = torch.empty(weights.shape, dtype=torch.uint8, pin_memory=True)
        stream = torch.cuda.Stream(weights.device)
        with torch.cuda.stream(stream):
            self._saved.copy_(weights, non_blocking=True)
        stream.synchronize()

    def restore(self, after: CardMoment) -> None:
        """Bring a saved copy back to the home, once the card has done all that it was given before `after`:
        steps that still use the pages, for what they held until now."""
        weights, saved = self._weights(), self._saved
        assert saved is not None
        if after.event is None:
            self._arena.discard(self.home)
            np.copyto(weights.numpy(), saved.numpy())
        else:
            stream = torch.cuda.Stream(weights.device)
            stream.wait_event(after.event)
            with torch.cuda.stream(stream):
                weights.copy_(saved, non_blocking=True)
            stream.synchronize()
        self._saved = None

    def drop(self) -> None:
        """Forget the weights, and the copy of them."""
        self.model = self._saved = None

    def _weights(self) -> torch.Tensor:
        assert self._allocator is not None, "the weights were never loaded"
        return self._allocator.weights
