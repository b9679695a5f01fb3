"""One scalar of the file as the type that its key wants, or a sentence that says what to write instead."""

import math
import re
from contextlib import suppress
from typing import Any

from onecard.registry.document import Scalar
from onecard.registry.problems import did_you_mean, listed, shown
from onecard.registry.shape import Key, assignment, wanted
from onecard.registry.spec import MemoryAmount
from onecard.registry.units import UNITS, parse_bytes

_LONGEST_NAME = 200


class RefusedError(Exception):
    """A value that its key can't take; the message is the sentence for the user."""


def typed(key: Key, scalar: Scalar) -> Any:
    """The scalar as `key` wants it. Raises RefusedError."""
    if key.optional and (scalar.value is None or (scalar.value == key.info.none and key.hint is not str)):
        return None
    if scalar.value is None and not (key.hint is str and scalar.from_variable):
        raise RefusedError(f"is empty; write a value, such as {assignment(key)}, or remove the key")
    if key.choices:
        return _choice(key, scalar)
    if key.hint is MemoryAmount:
        return _memory(key, scalar)
    if key.hint is bool:
        if isinstance(scalar.value, bool):
            return scalar.value
        raise RefusedError(wrong(key, _shown(scalar)))
    if key.hint is str:
        return _text(key, scalar)
    return _number(key, scalar)


def _text(key: Key, scalar: Scalar) -> str:
    text = scalar.text
    if not isinstance(scalar.value, str) and not scalar.from_variable:
        if key.info.secret:
            raise RefusedError("wants text, and YAML takes what is there for something else: quote it")
        raise RefusedError(f'wants text, got {_shown(scalar)}; put it in quotes: "{shown(text)}"')
    if key.info.pattern and not re.fullmatch(key.info.pattern, text):
        raise RefusedError(_no_match(key, text))
    return text


def _no_match(key: Key, text: str) -> str:
    meaning = key.info.doc.rstrip(".")
    if key.info.secret:
        why = (
            "it has a blank or a line end where none may be" if re.search(r"\s", text) else "it can't be used"
        )
        return f"is not valid, and not shown here: {why}; write {assignment(key)} ({meaning})"
    without = re.sub(r"\s+", "-", text.strip())
    if without != text and len(text) <= _LONGEST_NAME and re.fullmatch(key.info.pattern or "", without):
        return f"`{text}` has blanks, which may not stand there; write for example `{key.name}: {without}`"
    return f"`{shown(text)}` is not valid; write {assignment(key)} ({meaning})"


def _choice(key: Key, scalar: Scalar) -> Any:
    value = scalar.value if isinstance(key.choices[0], int) else scalar.text
    if isinstance(value, bool) or value not in key.choices:
        words = [str(choice) for choice in key.choices]
        quoted = scalar.quoted and scalar.text in words
        advice = "; remove the quotes" if quoted else f".{did_you_mean(scalar.text, words)}"
        raise RefusedError(f"`{shown(scalar.text)}` is no {key.name}; write {listed(words)}{advice}")
    return value


def _number(key: Key, scalar: Scalar) -> int | float:
    _check_base(scalar)
    value = scalar.value
    if key.info.nbytes and isinstance(value, str):
        value = _bytes(scalar.text)
    if key.hint is float and isinstance(value, str) and not scalar.quoted:
        with suppress(ValueError):  # YAML 1.1 takes 1e3 for text; a key that wants a number does not
            value = float(value)
    kinds = (int,) if key.hint is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
        hint = "; remove the quotes" if scalar.quoted else f"; write for example {assignment(key)}"
        raise RefusedError(f"wants {wanted(key)}, got {_shown(scalar)}{hint}")
    low, above, high = key.info.minimum, key.info.above, key.info.maximum
    too_low = (low is not None and value < low) or (above is not None and value <= above)
    if too_low or (high is not None and value > high):
        raise RefusedError(wrong(key, f"`{shown(scalar.text)}`"))
    return float(value) if key.hint is float else value


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise RefusedError(str(error)) from None


def _check_base(scalar: Scalar) -> None:
    """YAML 1.1 reads some numbers as nobody means them."""
    value, digits = scalar.value, scalar.text.lstrip("+-").replace("_", "")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    if ":" in digits:
        raise RefusedError(f"`{scalar.text}` is {value} to YAML, which counts in sixties here; write {value}")
    if digits.isdecimal() and int(digits) != abs(value):
        decimal = scalar.text.replace(digits, digits.lstrip("0"))
        raise RefusedError(
            f"`{scalar.text}` is {value} to YAML, which takes it for octal; write {decimal} or {value}"
        )


def _memory(key: Key, scalar: Scalar) -> MemoryAmount:
    _check_base(scalar)
    value = scalar.value
    if isinstance(value, str):
        if value.endswith("%"):
            advice = "write a percentage as a fraction, such as 0.5"
            raise RefusedError(f"wants {wanted(key)}, got `{shown(value)}`; {advice}")
        return _byte_amount(key, _bytes(value), scalar)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RefusedError(wrong(key, _shown(scalar)))
    low = 0 if key.info.minimum == 0 else math.ulp(0.0)
    if low <= value <= 1:
        return MemoryAmount(fraction=float(value))
    if isinstance(value, float) or value <= 0:
        raise RefusedError(wrong(key, f"`{shown(scalar.text)}`"))
    return _byte_amount(key, value, scalar)


def _byte_amount(key: Key, value: int, scalar: Scalar) -> MemoryAmount:
    if value == 0 and key.info.minimum == 0:
        return MemoryAmount(fraction=0.0)  # as a plain 0 is read: `0MiB` for `0` changes nothing
    if value == 0:
        raise RefusedError(wrong(key, f"`{shown(scalar.text)}`"))
    if value < UNITS["KiB"]:
        raise RefusedError(f"`{scalar.text}` would be {value} bytes; write a fraction (0.5) or a unit (6GiB)")
    return MemoryAmount(nbytes=value)


def wrong(key: Key, got: str) -> str:
    return f"wants {wanted(key)}, got {got}; write for example {assignment(key)}"


def _shown(scalar: Scalar) -> str:
    text = f"`{shown(scalar.text)}`"
    return f"the text {text}" if isinstance(scalar.value, str) else text
