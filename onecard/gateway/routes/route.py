"""What one row of the table of routes says, and what all rows together say of who may ask."""

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


@dataclass(frozen=True)
class Routes:
    """All routes of a server."""

    rows: tuple[Route, ...]

    @cached_property
    def open_paths(self) -> frozenset[str]:
        return frozenset(row.path for row in self.rows if row.access == "open")

    @cached_property
    def early_paths(self) -> frozenset[str]:
        return self.open_paths | {row.path for row in self.rows if row.early}

    def is_admin(self, path: str) -> bool:
        """Whether `path` is for operators: it shows or changes what the server does for everybody.

        Its first part tells, however many slashes stand around it: what leads nowhere (`/sleep/`) counts too.
        """
        return _root(path) in self._admin_roots

    @cached_property
    def _admin_roots(self) -> frozenset[str]:
        return frozenset(_root(row.path) for row in self.rows if row.access == "admin")


def _root(path: str) -> str:
    return path.strip("/").partition("/")[0]
