"""What a card's loop needs of an engine."""

from typing import Any, Protocol

from onecard.engines.runtime.inbox import Delivery


class StepEngine(Protocol):
    """All of it runs on the device-loop thread."""

    name: str
    weight: float

    def has_work(self) -> bool: ...

    def urgency(self) -> int:
        """The priority of its most urgent request (smaller: more urgent); asked only where there is work."""
        ...

    def launch(self, seconds: float | None = None) -> Any | None:
        """Schedule and enqueue one step, of no more than about `seconds`; None: as large as it may be.

        Returns None where nothing can run now (it waits for memory, say).
        """
        ...

    def collect(self, step: Any) -> list[Delivery]:
        """Wait for the step, update the engine's state, and return what its clients get.

        Steps are collected in order; another one may have been launched meanwhile.
        """
        ...

    def fail(self, error: BaseException) -> list[Delivery]:
        """A step raised: fail its requests, free all they held, be ready for the next step.

        Raises where that can't be done, or where the books don't add up then; `give_up` follows.
        """
        ...

    def give_up(self, error: BaseException) -> list[Delivery]:
        """Fail every request and give all memory back, whatever state the engine is in: it is taken off.

        Steps still in flight are collected all the same. Called again for requests that come in later.
        """
        ...

    def idle(self) -> None:
        """The loop is about to sleep. Raises where the books don't add up: no result can be trusted then."""
        ...
