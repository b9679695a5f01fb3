"""One attempt that several wait for. Lives on the event loop."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

Check = Callable[[], None]
"""To be called wherever the work may still be given up: raises `AbandonedError` where nobody wants it."""


class AbandonedError(Exception):
    """All who waited for the attempt have left."""


class SharedTask:
    """Runs `work` as a task. Whoever leaves doesn't end it; once all have left, the work itself decides
    whether it goes on: the check that it is given tells."""

    def __init__(self, work: Callable[[Check], Coroutine[Any, Any, None]], name: str):
        self._num_waiting = 0
        self._task = asyncio.create_task(work(self._check), name=name)
        self._task.add_done_callback(note_error)

    async def join(self) -> None:
        """Returns when the work is done, or raises what it raised."""
        with self.wanted():
            await asyncio.shield(self._task)

    @contextmanager
    def wanted(self) -> Iterator[None]:
        """As long as somebody wants it, without waiting for its end."""
        self._num_waiting += 1
        try:
            yield
        finally:
            self._num_waiting -= 1

    def _check(self) -> None:
        if not self._num_waiting:
            raise AbandonedError


def note_error(task: "asyncio.Task[None]") -> None:
    """Whoever waits gets the error; if nobody does any more, it has been logged and is no news."""
    if not task.cancelled():
        task.exception()
