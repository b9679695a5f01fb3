"""The event loop's side of a one-shot model: texts of a request in, one row of numbers each out."""

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from onecard.engines.api import ModelInfo
from onecard.engines.oneshot.core import OneShotCore
from onecard.engines.oneshot.job import Job
from onecard.engines.runtime.device_loop import DeviceLoop
from onecard.engines.runtime.gate import Gate
from onecard.engines.step.front import Front
from onecard.engines.text.service import TextService


class OneShotEngine(Front[OneShotCore]):
    """`width`: numbers a text comes to; `info.max_model_len` bounds a text with its specials."""

    def __init__(
        self,
        info: ModelInfo,
        core: OneShotCore,
        loop: DeviceLoop,
        text: TextService,
        gate: Gate,
        width: int,
    ):
        super().__init__(info, core, loop, text, gate)
        self._width = width

    async def _run(
        self,
        texts: list[list[int]],
        priority: int,
        on_begun: Callable[[], None] | None,
        arrived: float,
        type_ids: Sequence[list[int] | None] | None = None,
    ) -> np.ndarray:
        """`[len(texts), width]` float32. Raises `EngineFailedError` if a step fails."""
        result = asyncio.get_running_loop().create_future()
        job = Job(
            priority=priority,
            texts=texts,
            type_ids=type_ids,
            results=np.empty((len(texts), self._width), dtype=np.float32),
            result=result,
            num_missing=len(texts),
            arrived=arrived,
            on_begun=on_begun,
        )
        await self.gate.enter()
        self._post(job)
        try:
            await result
        except asyncio.CancelledError:
            # The flag stops what is queued at once; the core lets go of it before its next step.
            job.cancelled = True
            self._post_abort(job)
            raise
        return job.results
