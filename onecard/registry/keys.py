"""What a key of the registry says of itself: its meaning, its bounds, and what a change of it asks for.

A field's `key` metadata is the one place where this is written: the schema, the error messages,
`docs/registry.md` and `changes` all come from it.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

Effect = Literal["live", "rebuild", "replace", "restart"]
"""What a changed key asks of a running server. `live`: numbers change while requests run. `rebuild`: the
engine is made anew around the weights it has. `replace`: another model, so the old one goes and the new one
comes. `restart`: the server keeps what it has until it is started again."""


@dataclass(frozen=True)
class KeyInfo:
    """What a key means and what may stand in it, beside its type."""

    doc: str
    effect: Effect | None = None
    """None: the key is a section, whose own keys say it."""
    example: str | None = None
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    pattern: str | None = None
    """A regular expression that the whole text must match; the example shows what does."""
    nbytes: bool = False
    """A count of bytes: an int, or text with a unit such as 32MiB."""
    required: bool = False
    secret: bool = False
    """What stands there is shown to nobody: not in an error, not in the log."""
    drop_empty: bool = False
    """Empty items of the list count as absent."""
    none: str = "auto"
    """The word for None, where a number may be left out."""


def section(default: Any, doc: str, **info: Any) -> Any:
    """A field that holds keys of its own, or a list of such; `info` are further fields of KeyInfo."""
    return field(default=default, metadata={"key": KeyInfo(doc, **info)})


def key(default: Any, doc: str, *, effect: Effect, **info: Any) -> Any:
    """A field that knows what it means, and what a change of it asks for."""
    return section(default, doc, effect=effect, **info)


live, rebuild = partial(key, effect="live"), partial(key, effect="rebuild")
replace, restart = partial(key, effect="replace"), partial(key, effect="restart")
