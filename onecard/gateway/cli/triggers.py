"""What reaches a server other than over HTTP: signals, and a change of its registry file.

SIGTERM and Ctrl-C: the first asks the server to drain, the second ends the process. SIGHUP, or a change: the
registry is read again.
"""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NoReturn

from watchfiles import awatch

from onecard.engines.api import EngineError
from onecard.gateway.cli.deadline import end_wordless_after

logger = logging.getLogger(__name__)

PAUSE_MILLISECONDS = 250
"""Writing has ended when nothing changed for so long. The watch takes the GIL for a moment as often."""

LAST_WORDS_SECONDS = 1.0

LOOK_MILLISECONDS = 5000
"""How often to look where nothing was told: not every file system tells of changes."""


class RegistryFile:
    """A file that may change. Changes count from the moment this object is made."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self._seen = self._signature()

    async def changes(self) -> AsyncIterator[None]:
        """Yields after each change, once writing has paused; a file that is gone is waited for.

        The folder is watched and not the file: editors and Kubernetes put another file, or another link to
        one, in its place.
        """
        if self._has_changed():
            yield
        looks = awatch(
            self.path.parent,
            recursive=False,
            watch_filter=None,
            step=PAUSE_MILLISECONDS,
            rust_timeout=LOOK_MILLISECONDS,
            yield_on_timeout=True,
        )
        async for _ in looks:
            if self._has_changed():
                yield

    def _has_changed(self) -> bool:
        before, now = self._seen, self._signature()
        self._seen = now or before
        return now is not None and now != before

    def _signature(self) -> tuple[int, int, int] | None:
        """What a change changes, None where there is no file."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns


class ReloadTriggers:
    """Handles SIGHUP on the running loop from now on; what comes before `run` waits for it."""

    def __init__(self, file: RegistryFile | None) -> None:
        self._file = file
        self._asked = asyncio.Event()
        if hasattr(signal, "SIGHUP"):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._ask, "SIGHUP")

    async def run(self, reload: Callable[[], Awaitable[object]]) -> None:
        """Reload whenever there is cause, until cancelled; after one that fails too."""
        async with asyncio.TaskGroup() as tasks:
            if self._file is not None:
                tasks.create_task(self._watch(self._file))
            while True:
                await self._asked.wait()
                self._asked.clear()
                await self._reload(reload)

    def _ask(self, why: str) -> None:
        logger.info("%s: reading the registry again", why)
        self._asked.set()

    async def _watch(self, file: RegistryFile) -> None:
        try:
            async for _ in file.changes():
                self._ask(f"{file.path.name} has changed")
        except (OSError, RuntimeError) as error:
            logger.warning("%s can't be watched (%s): send SIGHUP after a change", file.path, error)

    async def _reload(self, reload: Callable[[], Awaitable[object]]) -> None:
        try:
            await reload()
        except EngineError:
            pass  # the reloader has said why
        except Exception:
            logger.exception("the registry could not be reloaded")


class StopSignals:
    """Handles SIGTERM and SIGINT from now on; `restore` puts the terminal right before an exit.

    The handlers are Python's own and not the loop's: they also run where something keeps the loop from
    turning. For the main thread, inside of its running loop.
    """

    def __init__(self, restore: Callable[[], object]) -> None:
        self._restore = restore
        self._on_stop: Callable[[], object] | None = None
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._stopping = False
        numbers = (signal.SIGTERM, signal.SIGINT)
        self._before = {number: signal.signal(number, self._received) for number in numbers}

    async def wait(self, on_stop: Callable[[], object] = lambda: None) -> None:
        """Returns once somebody has asked the server to stop; before this call a signal ends it at once.
        `on_stop` is called by the signal's handler, whatever the loop is at."""
        self._on_stop = on_stop
        await self._stop.wait()
        logger.info("draining: running requests finish, new ones get 503; a second signal exits at once")

    def close(self) -> None:
        """What was there before handles signals again, unless one has come: then the next still ends it."""
        if not self._stopping:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _received(self, number: int, _frame: object) -> None:
        if self._on_stop is None or self._stopping:
            self._exit(number)
        self._stopping = True
        self._on_stop()
        self._loop.call_soon_threadsafe(self._stop.set)

    def _exit(self, number: int) -> NoReturn:
        # Threads that load weights or run steps would hold up an ordinary exit.
        end_wordless_after(LAST_WORDS_SECONDS)
        try:
            logger.warning("%s: exiting at once", signal.Signals(number).name)
            self._restore()
        finally:
            os._exit(128 + number)
