"""What every weight format looks like to the loader."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
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


_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def open_checkpoint(path: Path) -> Checkpoint:
    """The safetensors of a Hugging Face folder, or a .gguf file. Raises `LoadError`; never opens a pickle."""
    if path.suffix == ".gguf":
        from onecard.engines.weights.gguf import GgufCheckpoint

        return GgufCheckpoint(path)
    if path.suffix in _PICKLES:
        raise _refused(path)
    if not path.is_dir():
        raise LoadError(f"{path} is neither a .gguf file nor a folder with safetensors")
    from onecard.engines.weights.safetensors import SafetensorsCheckpoint, find_shards

    shards = find_shards(path)
    if shards:
        return SafetensorsCheckpoint(shards)
    pickles = sorted(file for file in path.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise _refused(pickles[0])
    raise LoadError(f"{path} holds no .safetensors file")


def _refused(path: Path) -> LoadError:
    return LoadError(
        f"{path} is a pickle, which can run code when it is read; convert the checkpoint to safetensors "
        "(transformers' save_pretrained writes it) or take one that is"
    )
