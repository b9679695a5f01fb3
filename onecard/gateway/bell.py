"""Waiting for whichever comes first: an event, or a silence that has lasted too long."""

import asyncio


class Bell:
    """Wakes the one who waits: at once when it rings, or after `patience` seconds without a ring.

    One timer serves all waits, and waiting doesn't touch it: when it goes off it looks how long the silence
    has lasted, and sets itself again. (A timeout a wait would cost more than the wait.) Without a `patience`
    it waits for a ring however long. Close it at the end.
    """

    def __init__(self, patience: float | None):
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._silent_since = 0.0
        self._waiter: asyncio.Future[bool] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def ring(self) -> None:
        """Wake the waiter; nothing happens where nobody waits."""
        self._answer(True)

    async def wait(self) -> bool:
        """True once it has rung, False after a silence."""
        self._silent_since = self._loop.time()
        if self._timer is None and self._patience is not None:
            self._set_timer(self._patience)
        self._waiter = self._loop.create_future()
        return await self._waiter

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self, patience: float) -> None:
        self._timer = self._loop.call_at(self._silent_since + patience, self._look, patience)

    def _look(self, patience: float) -> None:
        if self._loop.time() < self._silent_since + patience:
            self._set_timer(patience)
        else:
            self._timer = None
            self._answer(False)

    def _answer(self, rung: bool) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(rung)
