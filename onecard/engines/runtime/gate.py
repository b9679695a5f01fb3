"""Where requests wait while their model isn't awake. Lives on the event loop's thread."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from onecard.engines.api import EngineError, ModelState, ModelUnavailableError, WakeTimeoutError


@dataclass
class WakeTimeout:
    """How long a request waits for its model. One object for all gates: it changes with the registry."""

    seconds: float


class Waker(Protocol):
    """Who brings the models behind gates to their card."""

    async def wake_up(self, gate: "Gate") -> None: ...  # returns when the model may be awake
    def reason(self, gate: "Gate") -> str: ...  # why it isn't yet, for whoever has waited too long
    def arrived(self, gate: "Gate") -> None: ...  # a request is with its engine in a moment, or has left


class Gate:
    """One a model. Open while the model is awake; who comes to a closed gate wakes the model and waits.

    `state` is what the operator sees. `last_used` is on `time.monotonic`'s clock. Without a `waker` the model
    never sleeps; without a `timeout` whoever comes waits as long as it takes.
    """

    def __init__(
        self,
        name: str,
        waker: Waker | None = None,
        timeout: WakeTimeout | None = None,
        state: ModelState = "ready",
    ):
        self.name = name
        self.state = state
        self.last_used = time.monotonic()
        self.refusal: EngineError | None = None
        """Why nobody is let in any more, once the model has failed for good or is on its way out."""
        self.num_uses = 0
        """Grows whenever somebody is let in, who is posted to the card's loop there and then."""
        self.num_waiting = 0
        """Requests that were accepted, but are not with their engine yet."""
        self._waker = waker
        self._timeout = timeout

    @property
    def is_open(self) -> bool:
        return self.state == "ready" and self.refusal is None

    @property
    def notice(self) -> str:
        """What a waiting client is told."""
        return f"{self.name} is waking up"

    def touch(self) -> None:
        """Somebody uses the model now, or wants to."""
        self.last_used = time.monotonic()
        self.num_uses += self.is_open

    def turn(self, state: ModelState) -> None:
        """A model that has failed meanwhile stays so."""
        if self.state != "failed":
            self.state = state

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
            if self._waker is not None:
                self._waker.arrived(self)

    async def enter(self) -> None:
        """Returns once the model takes requests. Raises `EngineError` where it won't, or not in time."""
        self.touch()
        if not self.is_open:
            with self.arriving():
                async with self.in_time():
                    await self._opened()

    @asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """Around a wait for the model to wake up: raises `WakeTimeoutError` after `timeout`."""
        limit = None if self._timeout is None else self._timeout.seconds
        try:
            async with asyncio.timeout(limit):
                yield
        except TimeoutError as error:
            why = "" if self._waker is None else f": {self._waker.reason(self)}"
            raise WakeTimeoutError(
                f"The model `{self.name}` could not be woken within {limit:g} s{why}. Try again later."
            ) from error

    async def _opened(self) -> None:
        while not self.is_open:
            if self.refusal is not None:
                raise self.refusal
            if self._waker is None:
                raise ModelUnavailableError(f"The model `{self.name}` is {self.state}; try again later.")
            await self._waker.wake_up(self)


def out_of_service(name: str, error: BaseException) -> ModelUnavailableError:
    """What whoever wants a model hears once it has failed of `error`."""
    return ModelUnavailableError(
        f"The model `{name}` has failed ({type(error).__name__}: {error}) and is out of service; "
        f"waking it up (POST /models/{name}/wake_up) tries again."
    )
