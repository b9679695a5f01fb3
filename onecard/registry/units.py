"""Counts as people write them: of bytes (6GiB, 4GB, 1048576), and of things (1 request, 2 requests)."""

import re
from fractions import Fraction

UNITS = {
    "B": 1,
    **{f"{p}B": 1000 ** (i + 1) for i, p in enumerate("KMGT")},
    **{f"{p}iB": 1024 ** (i + 1) for i, p in enumerate("KMGT")},
}
_LONGEST = 50
"""Characters of a number of bytes."""
_BY_LOWER = {unit.lower(): size for unit, size in UNITS.items()}
BYTES_PATTERN = r"\d+(\.\d+)?\s*([KMGTkmgt][iI]?)?[bB]?"
"""What parse_bytes can read, for the JSON schema (which does not tell 4G from 4GB)."""


def parse_bytes(text: str) -> int:
    """Bytes in `text`: a number with an optional unit (case does not matter).

    GiB and the like count in 1024s, GB and the like in 1000s; a bare G is refused as ambiguous.
    Raises ValueError with a sentence that says what to write.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text) if len(text) <= _LONGEST else None
    if not match:
        raise ValueError(
            f"`{text[:_LONGEST]}` is no number of bytes; write a number and a unit, such as 6GiB or 512MiB"
        )
    number, unit = match.groups()
    if unit.lower() in ("k", "m", "g", "t"):
        big = unit.upper()
        raise ValueError(f"`{text}` is ambiguous; write {number}{big}iB (1024s) or {number}{big}B (1000s)")
    size = _BY_LOWER.get(unit.lower()) if unit else 1
    if size is None:
        raise ValueError(f"`{unit}` is no unit of bytes; use one of {', '.join(UNITS)}")
    amount = Fraction(number) * size
    if amount.denominator != 1 and size == 1:
        raise ValueError(f"`{text}` is no whole number of bytes; write a number and a unit, such as 6GiB")
    return int(amount)


def format_bytes(nbytes: int) -> str:
    """`nbytes` in the largest binary unit that keeps it at or above one, at most two decimals."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if nbytes >= UNITS[unit]:
            return f"{nbytes / UNITS[unit]:.2f}".rstrip("0").rstrip(".") + unit
    return f"{nbytes}B"


def counted(number: int, thing: str, things: str = "") -> str:
    """`1 request`, `2 requests`; `things` where the plural isn't `thing` with an s."""
    return f"{number} {thing if number == 1 else things or thing + 's'}"
