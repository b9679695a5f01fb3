"""JSON from clients: read in one go that holds the GIL, so only where a look at its brackets says it is
bounded."""

from collections.abc import Iterable
from typing import Any

import orjson

from onecard.engines.api import InvalidRequestError

MAX_DEPTH = 100
"""Half of what orjson writes: a text within JSON may be JSON itself, and both go to the chat template as
one."""
MAX_VALUES = 1 << 20
"""Some 35 ms of numbers."""
MAX_CONTAINERS = 1 << 16
"""Lists, objects and members of objects: some 20 ms of objects."""
PIECE_BYTES = 1 << 18
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BRACKETS = b"[]{}"
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in BRACKETS)


def loads(data: bytes) -> Any:
    """What a body says. Raises `InvalidRequestError` where it isn't JSON, nests too deep, or is too much."""
    data = data.removeprefix(BYTE_ORDER_MARK)
    check_bounds([data])
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(f"The body is not valid JSON: {error}.", code="invalid_json") from None


def check_bounds(texts: Iterable[bytes], param: str | None = None) -> None:
    """Raises `InvalidRequestError`, naming `param`, where one of `texts` nests too deep, or where they have
    too many parts together. It holds the GIL for no more than some milliseconds at a time."""
    structure = _Structure()
    for text in texts:
        if len(text) <= PIECE_BYTES and text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
            continue
        structure.begin()
        for start in range(0, len(text), PIECE_BYTES):
            if (problem := structure.add(text[start : start + PIECE_BYTES])) is not None:
                raise InvalidRequestError(problem, param=param, code="invalid_json")


class _Structure:
    """What is known of texts of which some has been seen. What lies in strings doesn't count."""

    def __init__(self) -> None:
        self._values = self._containers = 0
        self.begin()

    def begin(self) -> None:
        """Another text."""
        self._in_string = self._escaped = False
        self._depth = 0

    def add(self, piece: bytes) -> str | None:
        """What is wrong by now, if anything."""
        outside = self._outside_strings(piece)
        for bracket in outside.translate(None, _NO_BRACKETS):
            self._depth += 1 if bracket in b"[{" else -1
            if self._depth > MAX_DEPTH:
                return f"The JSON nests too deep: at most {MAX_DEPTH} lists and objects within each other."
        self._values += outside.count(b",")
        self._containers += outside.count(b":") + outside.count(b"[") + outside.count(b"{")
        if self._values > MAX_VALUES or self._containers > MAX_CONTAINERS:
            return (
                f"The JSON has too many parts: at most {MAX_VALUES} values, and {MAX_CONTAINERS} lists, "
                "objects and members of objects. Send them in several requests."
            )
        return None

    def _outside_strings(self, piece: bytes) -> bytes:
        if self._escaped:
            piece = piece[1:]
        plain = piece.replace(b"\\\\", b"")
        self._escaped = plain.endswith(b"\\")
        parts = plain.replace(b'\\"', b"").split(b'"')
        outside = parts[self._in_string :: 2]
        self._in_string ^= len(parts) % 2 == 0
        return b"".join(outside)
