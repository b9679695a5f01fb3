"""The bounded queues, one a model: how many of its requests may wait for their first output."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from onecard.engines.api import QueueFullError
from onecard.gateway.metrics import Metrics


class Ticket:
    """Places in a model's queue. Given back by `begun` (it runs) or when the request ends."""

    def __init__(self, admission: "Admission", model: str, weight: int):
        self._admission, self._model, self._weight = admission, model, weight

    def begun(self) -> None:
        """The request waits no longer. May be called any number of times."""
        if self._weight:
            self._admission.give_back(self._model, self._weight)
            self._weight = 0


class Admission:
    """Counts the prompts that wait, by model: a flood of one refuses nobody who asks another.

    `limit` holds for each model. Used on the event loop only: no locks.
    """

    def __init__(self, limit: int, metrics: Metrics):
        self.limit, self._metrics = limit, metrics
        self.waiting: Counter[str] = Counter()
        """Only the models for which any waits."""

    @contextmanager
    def admit(self, model: str, weight: int = 1) -> Iterator[Ticket]:
        """Hold `weight` places of `model` for the length of the block; `QueueFullError` where they are taken.

        A request that finds nobody waiting for its model is always let in, so that one with more prompts than
        the limit can be served at all.
        """
        if (waiting := self.waiting[model]) and waiting + weight > self.limit:
            self._metrics.rejected(model, "queue_full")
            raise QueueFullError(
                f"{waiting} requests are waiting for the model `{model}` and the limit is {self.limit}. "
                "Please retry later."
            )
        self.waiting[model] += weight
        ticket = Ticket(self, model, weight)
        try:
            yield ticket
        except QueueFullError as error:
            self._metrics.rejected(model, error.reason)
            raise
        finally:
            ticket.begun()

    def give_back(self, model: str, weight: int) -> None:
        """That many of the places that `admit` took."""
        self.waiting[model] -= weight
        if not self.waiting[model]:
            del self.waiting[model]  # models come and go
