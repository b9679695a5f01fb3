"""One request on its way through a one-shot engine."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onecard.engines.oneshot.queue import Queued


@dataclass(slots=True, eq=False, kw_only=True)
class Job(Queued):
    """`texts` wait in the queue; `results` `[len(texts), D]` float32 fills as steps are collected.

    `type_ids` of texts that are pairs. The device thread alone writes `results`, `num_missing` and `started`,
    until it delivers the job; from then on the event loop's thread alone reads them. Times are of
    `time.monotonic`.
    """

    texts: list[list[int]]
    type_ids: Sequence[list[int] | None] | None = None
    results: np.ndarray
    result: "asyncio.Future[None] | None" = None
    """None: nobody waits for it."""
    num_missing: int
    arrived: float
    started: float | None = None
    on_begun: Callable[[], None] | None = None
    """To be called, once, on the event loop's thread when the last text runs: none waits any more."""

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.texts))

    def deliver(self) -> None:
        """On the event loop's thread: `results` is whole."""
        if self.result is not None and not self.result.done():
            self.result.set_result(None)

    def deliver_error(self, error: Exception) -> None:
        """On the event loop's thread: the request is lost."""
        if self.result is not None and not self.result.done():
            self.result.set_exception(error)
