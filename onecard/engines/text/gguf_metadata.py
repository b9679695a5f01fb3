"""Reads the metadata of a GGUF file, and nothing else of it.

The `gguf` package maps every array element to a numpy view of its own, which takes seconds for a
vocabulary; a tokenizer needs only plain Python values. The layout is described in
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from pathlib import Path
from typing import Any, BinaryIO

from onecard.engines.text.errors import ModelFileError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_LENGTH = 1 << 30
"""No key, string or array of a sound file is longer; a damaged length must not ask for all memory."""


def read_metadata(path: Path) -> dict[str, Any]:
    """All key-value pairs of the GGUF file at `path`. Raises `ModelFileError` if it isn't one."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelFileError(f"{path} is not a GGUF file (it doesn't start with the bytes 'GGUF')")
        version, _tensors, pairs = _unpack(file, "IQQ")
        if version not in (2, 3):
            raise ModelFileError(f"{path} is a GGUF file of version {version}; versions 2 and 3 can be read")
        try:
            return {_string(file): _value(file, _unpack(file, "I")[0]) for _ in range(pairs)}
        except (struct.error, KeyError, UnicodeDecodeError) as error:
            raise ModelFileError(f"{path}: damaged GGUF metadata ({error!r}); fetch it again") from error


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    layout = "<" + layout
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _length(file: BinaryIO) -> int:
    length = _unpack(file, "Q")[0]
    if length > _MAX_LENGTH:
        raise struct.error(f"length {length}")
    return length


def _string(file: BinaryIO) -> str:
    return file.read(_length(file)).decode("utf-8")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        item_kind = _unpack(file, "I")[0]
        length = _length(file)
        if item_kind in _SCALARS:
            return list(_unpack(file, f"{length}{_SCALARS[item_kind]}"))
        return [_value(file, item_kind) for _ in range(length)]
    return _unpack(file, _SCALARS[kind])[0]
