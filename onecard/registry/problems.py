"""What is wrong with a registry file, and where."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field

from onecard.registry.spec import RegistryError

MOST_TOLD = 100
"""Mistakes of a file after which the rest of it isn't looked at."""
_LONGEST_WORD = 100
"""Characters of a word that may be a mistyped one: comparing words takes time."""
_LONGEST_SHOWN = 200


@dataclass(frozen=True, order=True)
class Position:
    """A place in the file; both count from 1."""

    line: int
    column: int


@dataclass(frozen=True, order=True)
class Problem:
    """One mistake. `key` is its path in the file, such as `models[0].engine.dtype`."""

    position: Position
    key: str
    message: str

    def text(self, file: str) -> str:
        where = f"{file}:{self.position.line}:{self.position.column}"
        return f"{where}: {shown(self.key)}: {self.message}" if self.key else f"{where}: {self.message}"


@dataclass
class Problems:
    """Collects the mistakes of one file, so that all are reported together."""

    file: str
    found: list[Problem] = field(default_factory=list)

    def add(self, position: Position, key: str, message: str) -> None:
        """Raises RegistryError where the file has had so many mistakes that it is none of ours."""
        problem = Problem(position, key, message)
        if problem not in self.found:
            self.found.append(problem)
        if len(self.found) >= MOST_TOLD:
            self.raise_if_any()

    def has(self, key: str) -> bool:
        """Whether something is already known to be wrong at `key`."""
        return any(problem.key == key for problem in self.found)

    def raise_if_any(self) -> None:
        """Raises RegistryError with every mistake, in the order of the file."""
        if not self.found:
            return
        lines = [problem.text(self.file) for problem in sorted(self.found)]
        if len(lines) > 1:
            lines.insert(0, f"{len(lines)} problems in {self.file}:")
        raise RegistryError("\n".join(lines))


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was probably meant to be."""
    if len(word) > _LONGEST_WORD:
        return None
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[close[0]] if close else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean ...?`, or nothing where no known word is near; to end a sentence with."""
    close = nearest(word, known)
    return f" Did you mean `{close}`?" if close else ""


def shown(text: str) -> str:
    """`text` as an error shows it: a long one without its middle."""
    half = _LONGEST_SHOWN // 2
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:half]}...{text[-half:]}"


def listed(words: Iterable[str]) -> str:
    """`a, b or c`, each in backticks."""
    quoted = [f"`{w}`" for w in words]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)
