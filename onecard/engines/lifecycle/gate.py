"""Where requests wait while their model isn't awake. Lives on the event loop's thread."""

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from onecard.engines.api import EngineError, ModelState, ModelUnavailableError

Wake = Callable[[], Awaitable[None]]


class Gate:
    """One a model. Open while the model is awake; who comes to a closed gate wakes the model and waits.

    `state` is what the operator sees. `last_used` is on `time.monotonic`'s clock.
    """

    def __init__(self, name: str, wake: Wake | None = None):
        self.name = name
        self.state: ModelState = "ready"
        self.last_used = time.monotonic()
        self.wake = wake
        """Returns when the model is awake, or raises `EngineError`; None: it never sleeps."""
        self.refusal: EngineError | None = None
        """Why nobody is let in any more, once the model has failed for good or is on its way out."""
        self.num_waiting = 0
        """Requests that were accepted, but are not with their engine yet."""

    @property
    def is_open(self) -> bool:
        return self.state == "ready" and self.refusal is None

    @property
    def notice(self) -> str:
        """What a waiting client is told."""
        return f"{self.name} is waking up"

    def touch(self) -> None:
        """Somebody uses the model now."""
        self.last_used = time.monotonic()

    def fail(self, why: EngineError) -> None:
        """The model serves no more; whoever wants it hears why."""
        self.state, self.refusal = "failed", why

    @contextmanager
    def arriving(self) -> Iterator[None]:
        """Around what a request needs before it is with its engine: the model isn't idle meanwhile."""
        self.num_waiting += 1
        try:
            yield
        finally:
            self.num_waiting -= 1
            self.touch()

    async def enter(self) -> None:
        """Returns once the model takes requests. Raises `EngineError` where it won't."""
        self.touch()
        with self.arriving():
            while not self.is_open:
                if self.refusal is not None:
                    raise self.refusal
                if self.wake is None:
                    raise ModelUnavailableError(f"The model `{self.name}` is {self.state}; try again later.")
                await self.wake()
