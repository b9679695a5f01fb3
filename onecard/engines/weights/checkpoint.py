"""What every weight format looks like to the loader."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch


class LoadError(Exception):
    """Weights that can't be loaded; the message names the file or the tensors, and what to do."""


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor. `dtype`: None if quantised; `nbytes`: its size in the file."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    nbytes: int


class Checkpoint(Protocol):
    """Opened by its headers; tensors are read one by one, under the names that Hugging Face gives them."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def read(self, name: str) -> torch.Tensor:
        """The tensor on the CPU, in its own dtype or, if quantised, in float32. May be a view of a mapped
        file.

        Thread-safe. Raises `LoadError`.
        """
        ...
