"""A generation request and its answers, as the device loop sees them. State only."""

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from onecard.engines.api import SamplingParams, TokenChunk, TokenLogprob
from onecard.engines.llm.logits import LogitsProcessor
from onecard.engines.llm.stream import TokenStream


class AnswerWriter(Protocol):
    """Turns an answer's tokens into what its client gets; `output.SequenceOutput` is one."""

    def append(self, token_id: int, logprob: TokenLogprob | None) -> TokenChunk: ...


class Status(Enum):
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(eq=False)
class Request:
    """One prompt and its `sampling.n` answers. `max_tokens` is settled: it fits the model's context."""

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    max_tokens: int
    arrival_time: float
    stream: TokenStream
    priority: int = 0
    cache_salt: bytes = b""
    sequences: list["Sequence"] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return all(sequence.status is Status.FINISHED for sequence in self.sequences)


@dataclass(eq=False)
class Sequence:
    """One answer being written. `token_ids` is the prompt and what has been sampled so far.

    Invariant between steps: K/V of the first `num_computed_tokens` tokens exist in the blocks of
    `block_table`, and `num_computed_tokens < len(token_ids)`: at least the last token is still to be run.
    """

    request: Request
    index: int
    seed: int
    token_ids: list[int]
    output: AnswerWriter
    processor: LogitsProcessor | None = None
    status: Status = Status.WAITING
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    row: int = -1
    """Its row of `RequestRows` while it runs."""
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    last_token_time: float | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def order(self) -> tuple[int, float, str, int]:
        """Scheduling order: the smallest goes first, the largest is preempted first."""
        return (self.request.priority, self.request.arrival_time, self.request.request_id, self.index)
