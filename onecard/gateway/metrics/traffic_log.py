"""A log line every ten seconds while there is traffic: what an operator wants to see scroll by."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from onecard.engines.api import RequestStats, StatsSink, StepStats
from onecard.registry.units import counted

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 10.0


@dataclass
class Window:
    """What one model did since the last line."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    last: StepStats | None = None

    def add(self, stats: StepStats) -> None:
        self.prompt_tokens += stats.prompt_tokens
        self.generation_tokens += stats.generation_tokens
        self.prefix_queries += stats.prefix_queries
        self.prefix_hits += stats.prefix_hits
        self.last = stats

    def line(self, seconds: float) -> str:
        """In vLLM's words, so that eyes and scripts find what they know. Of a model that generates nothing
        and keeps no KV cache neither is told."""
        assert self.last is not None, "a window begins with its first step"
        return f"{self.last.model}: {', '.join(self._figures(self.last, seconds))}"

    def _figures(self, last: StepStats, seconds: float) -> Iterator[str]:
        yield f"Avg prompt throughput: {self.prompt_tokens / seconds:.1f} tokens/s"
        if last.kv_usage is not None:
            yield f"Avg generation throughput: {self.generation_tokens / seconds:.1f} tokens/s"
        yield f"Running: {counted(last.num_running, 'req')}"
        yield f"Waiting: {counted(last.num_waiting, 'req')}"
        if last.kv_usage is not None:
            hit_rate = self.prefix_hits / self.prefix_queries if self.prefix_queries else 0.0
            yield f"KV cache usage: {100 * last.kv_usage:.1f}%"
            yield f"Prefix cache hit rate: {100 * hit_rate:.1f}%"


class TrafficLog:
    """A `StatsSink` that sums steps up and writes one line a busy model and interval."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._windows: dict[str, Window] = {}

    def record_step(self, stats: StepStats) -> None:
        self._windows.setdefault(stats.model, Window()).add(stats)

    def record_request(self, stats: RequestStats) -> None:
        """Requests are counted by their steps."""

    def flush(self) -> list[str]:
        """The lines for what happened since the last call; none for models that did nothing."""
        now = self._clock()
        seconds, self._since = max(now - self._since, 1e-9), now
        windows, self._windows = self._windows, {}
        return [window.line(seconds) for window in windows.values()]

    async def run(self) -> None:
        """Write lines until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            for line in self.flush():
                logger.info(line)


class StatsFan:
    """Passes what engines report on to several sinks."""

    def __init__(self, sinks: Sequence[StatsSink]) -> None:
        self._sinks = tuple(sinks)

    def record_step(self, stats: StepStats) -> None:
        for sink in self._sinks:
            sink.record_step(stats)

    def record_request(self, stats: RequestStats) -> None:
        for sink in self._sinks:
            sink.record_request(stats)
