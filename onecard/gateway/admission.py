"""Who is let in, and put out: the bounded queues, one a model, and the end of the server."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from onecard.engines.api import InvalidRequestError, QueueFullError, ShuttingDownError
from onecard.gateway.metrics import Metrics
from onecard.registry.spec import ServerSpec
from onecard.registry.units import counted

LEAST_SHARE = 16
"""Places that one request may hold however short the queue is."""


class Ticket:
    """`places` in a model's queue for `waiting` prompts. They are given back as those that wait get fewer,
    and when the request ends."""

    def __init__(self, admission: "Admission", model: str, places: int, waiting: int):
        self.admission, self._model, self._places, self._waiting = admission, model, places, waiting

    def begun(self) -> None:
        """One prompt more waits no longer. Once none does any more nothing happens."""
        self._waiting -= 1
        self._keep(self._waiting)

    def close(self) -> None:
        """The request ends."""
        self._keep(0)

    def _keep(self, most: int) -> None:
        if self._places > max(most, 0):
            self.admission.give_back(self._model, self._places - max(most, 0))
            self._places = max(most, 0)

    def refused(self, error: Exception) -> None:
        """The request ends with `error`; where that is a refusal, it is counted as one."""
        if isinstance(error, QueueFullError):
            self.admission.metrics.rejected(self._model, error.reason)


class Admission:
    """Counts the prompts that wait, by model: a flood of one refuses nobody who asks another.

    `limit` holds for each model, `most_sequences` for each request. Used on the event loop only: no locks.
    """

    def __init__(
        self, limit: int, metrics: Metrics, most_sequences: int = ServerSpec.max_sequences_per_request
    ):
        self.limit, self.metrics, self.most_sequences = limit, metrics, most_sequences
        self.waiting: Counter[str] = Counter()
        """Only the models for which any waits."""
        self.running: set[asyncio.Task[Any]] = set()
        """What answers requests now, to models or not."""
        self._is_over = False

    def check_size(self, count: int, param: str, each: int = 1) -> None:
        """Raises `InvalidRequestError` where `count` prompts (texts, documents) in the field `param`, with
        `each` answers to each, are more than one request may ask for. Whatever costs time for each of them
        comes after it."""
        if count * each > self.most_sequences:
            answers = f" with {each} answers each, {count * each} sequences in all" if each > 1 else ""
            raise InvalidRequestError(
                f"`{param}` comes to {count}{answers}; one request may ask for {self.most_sequences}. "
                "Please send several requests.",
                param=param if count > 1 else "n",
            )

    @contextmanager
    def admit(self, model: str, weight: int = 1) -> Iterator[Ticket]:
        """Hold places of `model` for `weight` prompts while they wait; `QueueFullError` where they are taken.

        No request holds more than a quarter of the places (of a short queue, more): however many prompts it
        has it keeps nobody out, and since they take turns with others' it keeps nobody waiting either. One
        that finds nobody waiting for its model is always let in.
        """
        prompts, weight = weight, min(weight, max(self.limit // 4, LEAST_SHARE))
        if (waiting := self.waiting[model]) and waiting + weight > self.limit:
            self.metrics.rejected(model, "queue_full")
            raise QueueFullError(
                f"{counted(waiting, 'request is', 'requests are')} waiting for the model `{model}` and the "
                f"limit is {self.limit}. Please retry later."
            )
        self.waiting[model] += weight
        ticket = Ticket(self, model, weight, prompts)
        try:
            with self.cut_off_heard():
                yield ticket
        except QueueFullError as error:
            ticket.refused(error)
            raise
        finally:
            ticket.close()

    def give_back(self, model: str, weight: int) -> None:
        """That many of the places that `admit` took."""
        self.waiting[model] -= weight
        if not self.waiting[model]:
            del self.waiting[model]  # models come and go

    def cut_off(self) -> None:
        """Requests that still run hear at once that the server stops them."""
        self._is_over = True
        for task in self.running:
            task.cancel()

    @contextmanager
    def cut_off_heard(self) -> Iterator[None]:
        """Around what `cut_off` interrupts: raises `ShuttingDownError` then."""
        try:
            yield
        except asyncio.CancelledError:
            if not self._is_over:
                raise
            raise ShuttingDownError("The request was stopped by the server; try another one.") from None
