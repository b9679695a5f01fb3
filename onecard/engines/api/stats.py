"""What engines report of their steps and requests."""

from dataclasses import dataclass
from typing import Literal, Protocol

from onecard.engines.api.generation import FinishReason


@dataclass(frozen=True)
class StepStats:
    """What one step of one engine did. Times in seconds."""

    model: str
    num_running: int
    num_waiting: int
    kv_usage: float | None
    """Fraction of the blocks this model could hold that are in use by requests, 0..1; None: it has none."""
    prompt_tokens: int = 0
    """Of requests that got their first token in this step, computed or cached; of an encoder, computed."""
    cached_prompt_tokens: int = 0
    """Of `prompt_tokens`, those that came from the prefix cache."""
    generation_tokens: int = 0
    prefix_queries: int = 0
    """Prompt tokens looked up in the prefix cache by requests first scheduled in this step."""
    prefix_hits: int = 0
    preemptions: int = 0
    num_deferred: int = 0
    """Of `num_waiting`, those that wait for something other than room, such as a prefix being computed."""
    host_seconds: float = 0.0
    device_seconds: float = 0.0
    gap_seconds: float = 0.0
    """Between the end of the device's previous step and the start of this one, while there was work."""
    first_token_seconds: tuple[float, ...] = ()
    """Time to first token of requests that got theirs in this step."""
    inter_token_seconds: tuple[float, ...] = ()


@dataclass(frozen=True)
class RequestStats:
    """One finished request (for n > 1: one answer). Times in seconds, None where it never got that far."""

    model: str
    finish_reason: FinishReason
    prompt_tokens: int
    generation_tokens: int
    cached_tokens: int
    preemptions: int
    n: int
    max_tokens: int | None
    e2e_seconds: float
    queue_seconds: float | None = None
    prefill_seconds: float | None = None
    decode_seconds: float | None = None


class LoadProgress(Protocol):
    """Told of weights as they load and of graphs as they are captured, from a worker thread."""

    def __call__(
        self, model: str, done: int, total: int, unit: Literal["bytes", "graphs"] = "bytes"
    ) -> None: ...


class StatsSink(Protocol):
    """Where engines report to; called on the event loop's thread, once a step."""

    def record_step(self, stats: StepStats) -> None: ...

    def record_request(self, stats: RequestStats) -> None: ...
