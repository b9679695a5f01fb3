"""The end of a process that must end, whatever its threads are at."""

import atexit
import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

CUT_OFF_STATUS = 124
"""The process was ended before everything in it had; `timeout` of coreutils says it so."""

BACKSTOP_SECONDS = 3.0


def end_process(status: int) -> None:
    """At once: an ordinary exit would wait for threads that nobody can stop."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def end_wordless_after(seconds: float) -> None:
    """For where no Python thread gets its turn any more (native code keeps the interpreter to itself), or one
    hangs while it says farewell (in a log that nobody reads)."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=os.open(os.devnull, os.O_WRONLY))


class Deadline:
    """Ends the process at a time, from a thread that waits for nothing else: an event loop that is stuck
    holds it up as little as a step, a template or a download that never ends. Does nothing before `within`.
    """

    def __init__(self, end: Callable[[int], object] = end_process) -> None:
        self._end = end
        self._news = threading.Condition()
        self._due: float | None = None
        self._told = 0.0
        """When the process was first given a time."""
        self.doing = ""
        """What the process is at, for the log."""
        self._is_done = False
        atexit.register(self._exit)  # runs once all threads have ended, after whatever was registered later

    def within(self, seconds: float, doing: str) -> None:
        """The process has so long from now on, whatever was said before. Signal handlers may call it."""
        end_wordless_after(seconds + BACKSTOP_SECONDS)
        with self._news:
            now, first = time.monotonic(), self._due is None
            self._told = now if first else self._told
            self._due, self.doing = now + seconds, doing
            self._news.notify()
        if first:
            threading.Thread(target=self._watch, name="deadline", daemon=True).start()

    def done(self) -> None:
        """All has ended in good order: after its exit handlers the process ends with status 0, without taking
        apart what it has in memory. That takes seconds with gigabytes, and may hang in a library."""
        self._is_done = True

    def _exit(self) -> None:
        if self._is_done:
            self._end(0)

    def _watch(self) -> None:
        with self._news:
            while (left := (self._due or 0.0) - time.monotonic()) > 0:
                self._news.wait(left)
        self.expire()

    def expire(self) -> None:
        """The process ends now, and the log says what it was at."""
        logger.critical(
            "still %s %.1f s after it was told to stop: the process ends now, with status %d",
            self.doing,
            time.monotonic() - self._told,
            CUT_OFF_STATUS,
        )
        self._end(CUT_OFF_STATUS)
