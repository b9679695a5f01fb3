"""What every weight format looks like to the loader; and safetensors: one file, or shards with an index."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from onecard.registry.plain_files import FileRefusedError, is_there, read_json, regular_size


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


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

_LARGEST_HEADER = 32 << 20
_LARGEST_INDEX = 32 << 20
"""Bytes; a checkpoint of a hundred thousand tensors has a third of it."""

Shards = Mapping[Path, frozenset[str] | None]
"""Files, each with the tensors that the index expects in it (None: no index, all that are there)."""


def find_shards(folder: Path) -> Shards:
    """The files that make up the folder's checkpoint; empty where there are none. Raises `LoadError`."""
    index = folder / "model.safetensors.index.json"
    if is_there(index):
        return _read_index(index)
    single = folder / "model.safetensors"
    files = [single] if is_there(single) else sorted(folder.glob("*.safetensors"))
    if len(files) > 1:
        raise LoadError(
            f"{folder} holds {len(files)} .safetensors files and no {index.name} that says how they belong"
        )
    return dict.fromkeys(files)


def _read_index(index: Path) -> Shards:
    try:
        content = read_json(index, _LARGEST_INDEX)
    except FileRefusedError as error:
        raise LoadError(str(error)) from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(map(_is_file_name, weight_map.values())):
        raise LoadError(
            f"{index} is not a safetensors index: its weight_map should name a file for each tensor"
        )
    names: dict[Path, set[str]] = {}
    for tensor, file in weight_map.items():
        names.setdefault(index.parent / file, set()).add(tensor)
    missing = sorted(file.name for file in names if not is_there(file))
    if missing:
        listed = ", ".join(missing[:10]) + (" ..." if len(missing) > 10 else "")
        raise LoadError(
            f"{index.parent} lacks {len(missing)} of the {len(names)} files of its index: {listed}"
        )
    return {file: frozenset(tensors) for file, tensors in sorted(names.items())}


def _is_file_name(value: Any) -> bool:
    """Of a file beside the index: it may not lead out of the folder."""
    return isinstance(value, str) and value not in ("", ".", "..") and not set(value) & set("/\\\0")


class SafetensorsCheckpoint:
    """Reads through a memory map: a tensor takes host memory only while it is copied."""

    def __init__(self, shards: Shards):
        self.tensors: dict[str, TensorInfo] = {}
        self._files: dict[str, Any] = {}
        for path, expected in shards.items():
            file = _open(path)
            found = list(file.keys())
            if expected is not None and (absent := sorted(expected.difference(found))):
                raise LoadError(f"{path} lacks tensors that the index puts there: {', '.join(absent[:10])}")
            for name in found:
                if expected is None or name in expected:
                    self._files[name] = file
                    self.tensors[name] = _info(path, name, file.get_slice(name))

    def read(self, name: str) -> torch.Tensor:
        return self._files[name].get_tensor(name)


def _open(path: Path) -> Any:
    try:
        _check_header(path)
        return safe_open(path, framework="pt")
    except FileRefusedError as error:
        raise LoadError(str(error)) from error
    except (SafetensorError, OSError) as error:
        raise LoadError(f"{path} is damaged or cut short ({error}); fetch it again") from error


def _check_header(path: Path) -> None:
    """Raises `LoadError` for a header that would take gigabytes of memory to read."""
    regular_size(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _LARGEST_HEADER:
        raise LoadError(
            f"{path} is damaged, or no safetensors: its header would have {length:,} bytes, of "
            f"{_LARGEST_HEADER:,} at most; fetch it again"
        )


def _info(path: Path, name: str, header: Any) -> TensorInfo:
    kind = header.get_dtype()
    if kind not in _DTYPES:
        raise LoadError(f"{path}: {name} is stored as {kind}, which isn't served")
    shape = tuple(header.get_shape())
    return TensorInfo(shape, _DTYPES[kind], torch.Size(shape).numel() * _DTYPES[kind].itemsize)
