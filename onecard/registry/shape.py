"""The shape of a registry file, read off the dataclasses of `spec`.

The decoder, the JSON schema and the reference in the docs all walk this, so none of them names a key.
"""

import types
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from onecard.registry.keys import KeyInfo
from onecard.registry.problems import listed
from onecard.registry.spec import MemoryAmount
from onecard.registry.units import format_bytes

_PLURALS = {int: "whole numbers", str: "texts"}


@dataclass(frozen=True)
class Key:
    """One key of the file. `hint` has no None in it: `optional` says whether it may be left to `auto`."""

    name: str
    hint: Any
    optional: bool
    default: Any
    info: KeyInfo

    @property
    def item(self) -> Any:
        """The hint of a list's items, None for what is no list."""
        return get_args(self.hint)[0] if get_origin(self.hint) is tuple else None

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values of a Literal, empty for other hints."""
        return get_args(self.hint) if get_origin(self.hint) is Literal else ()


def is_spec(hint: Any) -> bool:
    """Whether `hint` is a dataclass that a mapping fills."""
    return is_dataclass(hint) and hint is not MemoryAmount


@cache
def keys_of(spec: type) -> dict[str, Key]:
    """The keys that a mapping for `spec` may have, in the order of the dataclass."""
    hints = get_type_hints(spec)
    keys = {}
    for field in fields(spec):
        info = field.metadata.get("key")
        if info is None:
            continue
        hint, optional = hints[field.name], False
        if get_origin(hint) in (Union, types.UnionType):
            optional = type(None) in get_args(hint)
            hint = next(a for a in get_args(hint) if a is not type(None))
        default = None if field.default is MISSING else field.default
        keys[field.name] = Key(field.name, hint, optional, default, info)
    return keys


def wanted(key: Key) -> str:
    """What may stand in `key`, to go after `wants`."""
    if key.item is not None:
        return "a list of " + ("mappings" if is_spec(key.item) else _PLURALS[key.item])
    if is_spec(key.hint):
        return "a mapping"
    if key.choices:
        return f"one of {listed(key.choices)}"
    if key.hint is MemoryAmount:
        low = "0 to 1" if key.info.minimum == 0 else "above 0, up to 1"
        return f"a fraction ({low}) or bytes with a unit"
    if key.hint is bool:
        return "true or false"
    if key.hint is str:
        return "text"
    noun = "a whole number" if key.hint is int else "a number"
    noun = "a number of bytes" if key.info.nbytes else noun
    return noun + _bounds(key) + (f" or `{key.info.none}`" if key.optional else "")


def _bounds(key: Key) -> str:
    low, above, high = key.info.minimum, key.info.above, key.info.maximum
    if low is not None and high is not None:
        return f" from {low} to {high}"
    if low is not None:
        return f" of at least {low}"
    if above is not None:
        return f" above {above}" + (f", up to {high}" if high is not None else "")
    return ""


def example(key: Key) -> str:
    """A value to show, as YAML: the field's own example (perhaps `one or another`), else its default."""
    return key.info.example or as_yaml(key.default, key)


def assignment(key: Key) -> str:
    """The key with its example values, as a user would write them: `memory: 0.5` or `memory: 2GiB`."""
    return " or ".join(f"`{key.name}: {value}`" for value in example(key).split(" or "))


def as_yaml(value: Any, key: Key) -> str:
    """How `value` is written in the file."""
    if value is None:
        return key.info.none if key.hint in (int, float, MemoryAmount) else "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, MemoryAmount):
        return format_bytes(value.nbytes) if value.nbytes is not None else str(value.fraction)
    if key.info.nbytes:
        return format_bytes(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(as_yaml(v, key) for v in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'
