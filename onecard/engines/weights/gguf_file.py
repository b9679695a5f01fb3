"""The header of a GGUF file: metadata and where the tensors lie (the format: ggml's docs/gguf.md).

The `gguf` package's reader wraps every string of the vocabulary in arrays of its own and takes seconds for a
large one; this reads the header into plain Python values in one pass.
"""

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from onecard.registry.plain_files import FileRefusedError, regular_size

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_ENTRIES = 100_000
"""Keys, or tensors: a hundred times what models have."""
_MOST_ITEMS = 4_000_000
"""Of all arrays together: tokens, scores, types and merges of the largest vocabularies are a third of it."""
_MOST_DIMENSIONS, _MOST_NESTED = 4, 3
_LONGEST_STRING = 8 << 20


class GgufError(ValueError):
    """A file that isn't GGUF, or is damaged or cut short."""


@dataclass(frozen=True)
class GgufTensor:
    """`shape` has the rows first, as torch has it; `kind` is ggml's number of the type; `offset` is into the
    file."""

    shape: tuple[int, ...]
    kind: int
    offset: int


class GgufFile:
    """A memory-mapped GGUF file. `metadata` by key, arrays as lists; `tensors` by llama.cpp's names, in file
    order.

    Raises `GgufError` for a file that can't be read.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            regular_size(path)
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except FileRefusedError as error:
            raise GgufError(str(error)) from error
        except (OSError, ValueError) as error:
            raise GgufError(f"{path} is not a GGUF file: it is empty, or can't be read") from error
        try:
            self._read_header()
        except (struct.error, UnicodeDecodeError, OverflowError, MemoryError) as error:
            raise GgufError(f"{path} is damaged or cut short in its header; fetch it again") from error

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", "not named"))

    def value(self, key: str, default: Any = None) -> Any:
        """The metadata of the file's own architecture: `value("block_count")` is `llama.block_count`."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    @cached_property
    def data(self) -> np.ndarray:
        """The whole file as bytes, `[size]` uint8; what is written there stays in this process."""
        return np.frombuffer(self._map, dtype=np.uint8)

    def _read_header(self) -> None:
        if self._map[:4] != b"GGUF":
            raise GgufError(f"{self.path} is not a GGUF file (it doesn't start with the bytes 'GGUF')")
        cursor = _Cursor(self._map, 4)
        version = cursor.scalar("I")
        if version not in (2, 3):
            raise GgufError(f"{self.path} is GGUF version {version} (or big-endian); readable are 2 and 3")
        tensor_count, value_count = cursor.scalar("Q"), cursor.scalar("Q")
        if max(tensor_count, value_count) > _MOST_ENTRIES:
            raise self._damaged("its header has more entries than any model's")
        self.metadata: dict[str, Any] = {}
        for _ in range(value_count):
            key = cursor.string()
            if key in self.metadata:
                raise self._damaged(f"{key[:100]!r} stands twice in its header")
            self.metadata[key] = cursor.value(cursor.scalar("I"))
        found = dict(self._tensor(cursor) for _ in range(tensor_count))
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._damaged("its general.alignment is no power of two")
        start = -(-cursor.position // alignment) * alignment
        self.tensors = {n: GgufTensor(t.shape, t.kind, start + t.offset) for n, t in found.items()}

    def _tensor(self, cursor: "_Cursor") -> tuple[str, GgufTensor]:
        name, dimensions = cursor.string(), cursor.scalar("I")
        shape = cursor.array("Q", dimensions) if dimensions <= _MOST_DIMENSIONS else []
        if not shape or 0 in shape:
            raise self._damaged(f"the tensor {name[:100]!r} has no shape")
        return name, GgufTensor(tuple(reversed(shape)), cursor.scalar("I"), cursor.scalar("Q"))

    def _damaged(self, why: str) -> GgufError:
        return GgufError(f"{self.path} is damaged: {why}; fetch it again")


class _Cursor:
    """Reads little-endian values one after another."""

    def __init__(self, buffer: mmap.mmap, position: int):
        self.buffer = buffer
        self.position = position
        self._left = _MOST_ITEMS

    def scalar(self, form: str) -> Any:
        return self.array(form, 1)[0]

    def array(self, form: str, count: int) -> list[Any]:
        whole = f"<{count}{form}"
        values = struct.unpack_from(whole, self.buffer, self.position)
        self.position += struct.calcsize(whole)
        return list(values)

    def string(self) -> str:
        (length,) = struct.unpack_from("<Q", self.buffer, self.position)
        start = self.position + 8
        self.position = start + length
        if length > _LONGEST_STRING or self.position > len(self.buffer):
            raise struct.error("a string runs past the end of the file")
        return self.buffer[start : self.position].decode("utf-8")

    def value(self, kind: int, nested: int = 0) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            item, count = self.scalar("I"), self.scalar("Q")
            self._left -= count
            if self._left < 0 or nested > _MOST_NESTED:
                raise struct.error("more items than any vocabulary has")
            if item in _SCALARS:
                return self.array(_SCALARS[item], count)
            read: Callable[[], Any] = self.string if item == _STRING else lambda: self.value(item, nested + 1)
            return [read() for _ in range(count)]
        if kind not in _SCALARS:
            raise struct.error(f"unknown type {kind}")
        return self.scalar(_SCALARS[kind])
