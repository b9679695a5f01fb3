"""Values of a config.json, each checked before anything is built from it: its writer may be anybody, and a
model of a thousand million layers takes all memory before it is found out."""

import math
from collections.abc import Mapping
from typing import Any

_MOST = {
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 21,
    "num_hidden_layers": 1000,
    "num_attention_heads": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "head_dim": 1 << 14,
    "max_position_embeddings": 1 << 27,
    "original_max_position_embeddings": 1 << 27,
    "type_vocab_size": 1 << 16,
    "num_labels": 10_000,
}
"""Some ten times what the largest models known have."""
_MOST_OF_OTHERS = 1 << 31


class ConfigError(ValueError):
    """A config that can't be served; the message says why and what would be."""


def require(raw: Mapping[str, Any], *keys: str) -> list[int]:
    """The whole numbers at keys that a config can't do without."""
    missing = [key for key in keys if raw.get(key) is None]
    if missing:
        raise ConfigError(f"config.json lacks {', '.join(missing)}")
    return [whole(raw, key, 1) for key in keys]


def whole(raw: Mapping[str, Any], key: str, default: int, least: int = 1) -> int:
    """The whole number at `key`, `default` where there is none. Raises `ConfigError` for what can't be."""
    value, most = raw.get(key), _MOST.get(key, _MOST_OF_OTHERS)
    if value is None:
        return default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(f"{key} is {_shown(value)}; it should be a whole number from {least:,} to {most:,}")
    return value


def real(raw: Mapping[str, Any], key: str, default: float, above: float = 0.0) -> float:
    """The number at `key`, finite and larger than `above`; `default` where there is none."""
    value = raw.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value) or value <= above:
        raise ConfigError(f"{key} is {_shown(value)}; it should be a number above {above:g}")
    return float(value)


def reals(raw: Mapping[str, Any], key: str, count: int) -> tuple[float, ...]:
    """The list of `count` numbers above zero at `key`; empty where there is none."""
    values = raw.get(key)
    if not values:
        return ()
    if not isinstance(values, list) or len(values) != count:
        raise ConfigError(f"{key} should be a list of {count} numbers, one for each frequency")
    return tuple(real({key: value}, key, 1.0) for value in values)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return f"the text {value[:50]!r}"
    if isinstance(value, int | float):
        return f"{value:g}" if _finite(value) else "beyond all bounds"
    return f"a {type(value).__name__}"
