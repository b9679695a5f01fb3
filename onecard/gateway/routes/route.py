"""What one row of the table of routes says, and what all rows together say of who may ask."""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from aiohttp import web
from pydantic import BaseModel

from onecard.engines.api import Task


@dataclass(frozen=True)
class Route:
    """A path and its handler; the rest is for the server's description, its doors and `onecard serve`."""

    method: Literal["GET", "POST"]
    path: str
    """As aiohttp writes it: `{name:.+}` takes slashes too."""
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    summary: str
    answer: type[BaseModel] | None = None
    request: type[BaseModel] | None = None
    """The body, as JSON; with a `file`, as a form."""
    chunk: type[BaseModel] | None = None
    """What the events of a streamed answer hold."""
    task: Task | None = None
    """What it asks of a model."""
    example: Mapping[str, Any] | None = field(default=None, hash=False)
    """A body to try, without its `model`."""
    needs_body: bool = True
    file: str | None = None
    """The field of the form that holds a file."""
    query: tuple[str, ...] = ()
    """Parameters in the query, all of which may be left out."""
    access: Literal["key", "open", "admin"] = "key"
    """Who may ask: who has an API key (where there are any), everybody, or operators."""
    early: bool = False
    """It answers also while models are still being loaded, as open ones always do."""

    @property
    def published(self) -> str:
        """`/models/{name:.+}/sleep` as OpenAPI and metrics write it."""
        return re.sub(r"{(\w+):[^}]+}", r"{\1}", self.path)


@dataclass(frozen=True)
class Meant:
    """The row that a path leads to, and what its path says (`{id:.+}`)."""

    row: Route
    said: dict[str, str]


@dataclass(frozen=True)
class Routes:
    """All routes of a server."""

    rows: tuple[Route, ...]

    @cached_property
    def open_paths(self) -> frozenset[str]:
        return frozenset(row.path for row in self.rows if row.access == "open")

    @cached_property
    def published_paths(self) -> frozenset[str]:
        return frozenset(row.published for row in self.rows)

    def is_open(self, path: str) -> bool:
        """Whether everybody may ask what `path` plainly means."""
        if path in self._paths:  # as most are: no pattern is tried
            return path in self.open_paths
        return any(found.row.access == "open" for found in self.meant(path))

    def needs_models(self, path: str) -> bool:
        """Whether what `path` leads to can't answer before the models have been loaded."""
        found = self.exactly(path) or self.meant(path)
        return bool(found) and not any(meant.row.early or meant.row.access == "open" for meant in found)

    def is_admin(self, path: str) -> bool:
        """Whether `path` is for operators: it shows or changes what the server does for everybody.

        Its first part tells, however many slashes stand around it: what leads nowhere (`/sleep/`) counts too.
        Models stand at `/models` for everybody as well: there only an operator's whole path tells.
        """
        if _root(path) not in self._admin_roots:
            return False
        return not self.meant(path) or any(
            row.access == "admin" and pattern.fullmatch(_tidy(path)) for row, pattern in self._patterns
        )

    def meant(self, path: str) -> list[Meant]:
        """Where `path` plainly leads, of any method: with slashes too many, `/v1` left out or put before.

        Never to an operator's path: those are written as they stand in the table.
        """
        rest = _tidy(path)
        while rest == "/v1" or rest.startswith("/v1/"):
            rest = rest.removeprefix("/v1") or "/"
        for spelling in (f"/v1{rest}", rest):
            found = [meant for meant in self.exactly(spelling) if meant.row.access != "admin"]
            if found:
                return found
        return []

    def exactly(self, path: str) -> list[Meant]:
        """Where `path` leads as it is written, of any method."""
        matches = ((row, pattern.fullmatch(path)) for row, pattern in self._patterns)
        return [Meant(row, match.groupdict()) for row, match in matches if match is not None]

    @cached_property
    def _paths(self) -> frozenset[str]:
        return frozenset(row.path for row in self.rows)

    @cached_property
    def _patterns(self) -> list[tuple[Route, re.Pattern[str]]]:
        return [(row, re.compile(_pattern(row.path))) for row in self.rows]

    @cached_property
    def _admin_roots(self) -> frozenset[str]:
        return frozenset(_root(row.path) for row in self.rows if row.access == "admin")


def _root(path: str) -> str:
    return path.strip("/").partition("/")[0]


def _tidy(path: str) -> str:
    return "/" + "/".join(filter(None, path.split("/")))


def _pattern(path: str) -> str:
    """aiohttp's `/models/{name:.+}/sleep` as a regular expression."""
    text, *named = re.split(r"{(\w+):([^}]+)}", path)
    groups = zip(named[::3], named[1::3], named[2::3], strict=True)
    return re.escape(text) + "".join(f"(?P<{name}>{what}){re.escape(rest)}" for name, what, rest in groups)
