"""A changed registry, applied while the server runs: read, checked, fetched for, handed to the node."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from onecard.engines.api import InvalidRegistryError, ReloadReport
from onecard.registry.changes import compare, in_effect, needs_restart
from onecard.registry.sources import Progress, fetch
from onecard.registry.spec import ModelSpec, Registry, RegistryError
from onecard.registry.units import format_bytes

logger = logging.getLogger(__name__)

Load = Callable[[], Registry]
"""Reads and checks the registry file. Raises RegistryError. Runs on a thread."""
Fetch = Callable[[ModelSpec], Path]
"""The model's file or folder on this machine, fetched if need be. Raises RegistryError. Runs on a thread."""
Apply = Callable[[Registry, dict[str, Path]], Awaitable[ReloadReport]]
"""Makes the node serve this registry from these paths, all or nothing: raises `InvalidRegistryError`, and has
changed nothing then, for one that can't be served (one that doesn't fit its card)."""


class LogProgress(Progress):
    """For a server that has no terminal to draw bars on: the log tells of beginnings and ends only."""

    def start(self, name: str, total_bytes: int | None) -> None:
        size = f" ({format_bytes(total_bytes)})" if total_bytes is not None else ""
        logger.info("fetching %s%s", name, size)

    def done(self) -> None:
        logger.info("fetched")


def fetch_logged(model: ModelSpec) -> Path:
    return fetch(model, LogProgress())


@dataclass(frozen=True)
class _Prepared:
    """A registry that is right, as far as it can be served without a restart, and its models' paths."""

    registry: Registry
    paths: dict[str, Path]
    notes: tuple[str, ...]


class Reloader:
    """Reloads one at a time; used on the event loop. `running` and `paths` are what is served at first."""

    def __init__(
        self,
        load: Load,
        apply: Apply,
        running: Registry,
        paths: Mapping[str, Path],
        fetch: Fetch = fetch_logged,
    ) -> None:
        self._load, self._apply, self._fetch = load, apply, fetch
        self._running, self._paths = running, dict(paths)
        self._turn = asyncio.Lock()

    async def reload(self) -> ReloadReport:
        """Apply the registry file as it is now. Don't cancel it half-way.

        Raises `InvalidRegistryError` with what is wrong with the file; then nothing has changed.
        """
        async with self._turn:
            try:
                report = await self._reload()
            except (InvalidRegistryError, RegistryError) as error:
                logger.error("the registry is not reloaded, nothing has changed: %s", error)
                raise InvalidRegistryError(str(error)) from error
            for note in report.notes:
                logger.warning("%s", note)
            return report

    async def _reload(self) -> ReloadReport:
        prepared = await asyncio.to_thread(self._prepare)
        changes = compare(self._running, prepared.registry)
        report = ReloadReport()
        if changes:
            report = await self._apply(prepared.registry, prepared.paths)
            self._running, self._paths = prepared.registry, prepared.paths
        logger.info("the registry is reloaded: %s", "; ".join(changes.lines()) or "nothing has changed")
        return replace(report, notes=(*report.notes, *prepared.notes))

    def _prepare(self) -> _Prepared:
        written = self._load()
        wanted = in_effect(self._running, written)
        serving = {model.name: model for model in self._running.models}
        paths = {model.name: self._path(model, serving.get(model.name)) for model in wanted.models}
        return _Prepared(wanted, paths, needs_restart(self._running, written))

    def _path(self, model: ModelSpec, serving: ModelSpec | None) -> Path:
        if serving is not None and (serving.source, serving.sha256) == (model.source, model.sha256):
            return self._paths[model.name]  # what is being served needs no second look, nor its hash
        return self._fetch(model)
