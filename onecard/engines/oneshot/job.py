"""One embedding request on its way through the engine."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onecard.engines.oneshot.queue import Queued


@dataclass(slots=True, eq=False, kw_only=True)
class EmbedJob(Queued):
    """`texts` wait in the queue; `vectors` `[len(texts), D]` float32 fills as steps are collected.

    The device thread alone writes `vectors`, `num_missing` and `started`, until it delivers the job; from
    then on the event loop's thread alone reads them. Times are of `time.monotonic`.
    """

    texts: list[list[int]]
    vectors: np.ndarray
    result: "asyncio.Future[None]"
    num_missing: int
    arrived: float
    started: float | None = None
    on_begun: Callable[[], None] | None = None
    """To be called on the event loop's thread once the first text runs."""

    def deliver(self) -> None:
        """On the event loop's thread: `vectors` is whole."""
        if not self.result.done():
            self.result.set_result(None)

    def deliver_error(self, error: Exception) -> None:
        """On the event loop's thread: the request is lost."""
        if not self.result.done():
            self.result.set_exception(error)
