"""`${VAR}` and `${VAR:-default}` in a registry file.

References are hidden from the YAML parser and expanded in each scalar afterwards, so a value from the
environment can never change the structure of the file, `[${KEY:-}]` works although braces and colons mean
something to YAML there, and comments may name variables that nobody set.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from onecard.registry.problems import shown

# Bounded: an opening that is never closed would be looked for up to the end, from each of them.
_REFERENCE = re.compile(r"\$?\$\{[^}\n]{0,1000}\}")
_PARTS = re.compile(r"\$\$\{([^}]{0,1000})\}|\$\{([^}]{0,1000})\}")
_INSIDE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)
_PRIVATE_USE = range(0xE000, 0xF880, 0x80)


class UnsetVariableError(ValueError):
    """A variable without a value and without a default; the message names it."""


@dataclass(frozen=True)
class MaskedText:
    """Text whose references are written in private-use characters, one for one, so columns stay true."""

    text: str
    base: int

    def unmask(self, text: str) -> str:
        """The original characters of a piece of the text."""
        return text.translate({self.base + c: c for c in range(0x80)})


def mask(text: str) -> MaskedText:
    """`text` with every reference hidden from the YAML parser."""
    used = {ord(c) // 0x80 * 0x80 for c in text}
    base = next(b for b in _PRIVATE_USE if b not in used)
    table = {c: base + c for c in range(0x80)}
    return MaskedText(_REFERENCE.sub(lambda m: m.group().translate(table), text), base)


def expand(text: str, env: Mapping[str, str]) -> str:
    """`text` with its references replaced; `$${` stands for a plain `${`.

    As in a shell, the default of `${VAR:-default}` counts where VAR is unset or empty. Raises ValueError
    with a sentence for such a variable without a default and for a reference that is not well formed.
    """
    outside = _PARTS.sub("", text)
    if "${" in outside:
        raise ValueError(
            f"`{shown(text)}` opens `${{` and never closes it; write ${{VAR}}, or $${{ for a plain ${{"
        )
    return _PARTS.sub(lambda m: "${" + m[1] + "}" if m[1] is not None else _lookup(m[2], env), text)


def _lookup(inside: str, env: Mapping[str, str]) -> str:
    match = _INSIDE.fullmatch(inside)
    if not match or "${" in inside:
        raise ValueError(
            f"`${{{shown(inside)}}}` is no reference; write ${{VAR}} or ${{VAR:-default}} "
            f"(they do not nest), or $${{ for a plain ${{"
        )
    name, default = match.groups()
    value = env.get(name)
    if default is not None:
        return value or default
    if not value:
        state = "not set" if value is None else "empty"
        raise UnsetVariableError(
            f"the environment variable `{name}` is {state}; set it, or give a default: ${{{name}:-default}}"
        )
    return value
