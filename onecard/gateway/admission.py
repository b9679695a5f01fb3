"""The bounded queue: how many requests may wait for their first output, over all models together."""

from collections.abc import Iterator
from contextlib import contextmanager

from onecard.engines.api import QueueFullError, ShuttingDownError
from onecard.gateway.reporting import GatewayMetrics


class Ticket:
    """A place in the queue. Given back by `begun` (the first output is there) or when the request ends."""

    def __init__(self, admission: "Admission", weight: int):
        self._admission, self._weight = admission, weight

    def begun(self) -> None:
        """The request waits no longer. May be called any number of times."""
        self._admission.waiting -= self._weight
        self._weight = 0


class Admission:
    """Counts the prompts that wait. Used on the event loop only: no locks."""

    def __init__(self, limit: int, metrics: GatewayMetrics):
        self.limit, self._metrics = limit, metrics
        self.waiting = 0

    @contextmanager
    def admit(self, model: str, weight: int = 1) -> Iterator[Ticket]:
        """Hold `weight` places for the length of the block. Raises `QueueFullError` where they are taken.

        A request that finds nobody waiting is always let in, so that one with more prompts than the limit
        can be served at all.
        """
        if self.waiting and self.waiting + weight > self.limit:
            self._metrics.rejected(model, "queue_full")
            raise QueueFullError(
                f"{self.waiting} requests are waiting and the limit is {self.limit}. Please retry later."
            )
        self.waiting += weight
        ticket = Ticket(self, weight)
        try:
            yield ticket
        except ShuttingDownError:
            self._metrics.rejected(model, "draining")
            raise
        except QueueFullError:
            self._metrics.rejected(model, "queue_full")
            raise
        finally:
            ticket.begun()
