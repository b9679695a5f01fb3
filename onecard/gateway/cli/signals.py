"""SIGTERM and Ctrl-C: the first asks the server to drain, the second ends the process."""

import asyncio
import logging
import os
import signal
from collections.abc import Callable

logger = logging.getLogger(__name__)


class StopSignals:
    """Handles SIGTERM and SIGINT on the running loop; `restore` puts the terminal right before an exit."""

    def __init__(self, restore: Callable[[], object]) -> None:
        self._restore = restore
        self._serving = False
        self._stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._received, number)

    async def wait(self) -> None:
        """Returns once somebody has asked the server to stop; before this call a signal ends it at once."""
        self._serving = True
        await self._stop.wait()

    def _received(self, number: int) -> None:
        if not self._serving or self._stop.is_set():
            logger.warning("%s: exiting at once", signal.Signals(number).name)
            self._restore()
            os._exit(128 + number)  # threads that load weights or run steps would hold up an ordinary exit
        logger.info("draining: running requests finish, new ones get 503; a second signal exits at once")
        self._stop.set()
