"""A generation request and its answers, as the device loop sees them. State only."""

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from onecard.engines.api import SamplingParams, TokenChunk, TokenLogprob
from onecard.engines.paged.logits import LogitsProcessor
from onecard.engines.paged.stream import TokenStream


class AnswerWriter(Protocol):
    """Turns an answer's tokens into what its client gets; `output.SequenceOutput` is one."""

    def append(self, token_id: int, logprob: TokenLogprob | None) -> TokenChunk: ...


class Status(Enum):
    WAITING = auto()
    RUNNING = auto()
    PAUSED = auto()
    """Its client doesn't read: it is in no line and holds nothing."""
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
    group: str = ""
    """Requests that came together take their turns as one; by default each is a group of its own."""
    sequences: list["Sequence"] = field(default_factory=list)
    prompt_hashes: list[bytes] = field(default_factory=list)
    """Of the prompt's full blocks, once the first of its sequences wanted them."""

    def __post_init__(self) -> None:
        self.group = self.group or self.request_id


@dataclass(eq=False)
class Sequence:
    """One answer being written. `token_ids` is the prompt and every sampled token that has been read; the
    request's own list before the first of them, so that thousands of waiting answers cost no prompt each.

    A step that is launched but not collected counts as computed, and the token that it samples counts as one
    of the sequence's: `num_in_flight` of its tokens are not known yet. Invariant between steps: K/V of the
    first `num_computed_tokens` tokens exist in the blocks of `block_table`, or will before any later step
    reads them, and `num_computed_tokens < num_tokens`: at least the last token is still to be run.
    """

    request: Request
    index: int
    seed: int
    token_ids: list[int]
    output: AnswerWriter
    processor: LogitsProcessor | None = None
    status: Status = Status.WAITING
    num_computed_tokens: int = 0
    num_in_flight: int = 0
    num_offered_blocks: int = 0
    """Full blocks of its table that the prefix cache knows of."""
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    turn: int | None = None
    """Its place in line among those of its priority, for good: see `WaitingLine`."""
    was_made_room_for: bool = False
    """Another one was preempted so that it may begin: once is enough."""
    waiting_blocks: int = 0
    """What it is counted with while it waits: see `WaitingLine.blocks`."""
    awaited_hash: bytes | None = None
    """The last block of its prefix that somebody else was computing when it was to begin."""
    row: int = -1
    """Its row of `RequestRows` while it runs."""
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    last_token_time: float | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) + self.num_in_flight

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Sampled and read."""
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    @property
    def num_launched_outputs(self) -> int:
        """Sampled, read or not."""
        return self.num_tokens - len(self.request.prompt_token_ids)

    @property
    def num_uncomputed_tokens(self) -> int:
        return self.num_tokens - self.num_computed_tokens

    @property
    def may_step(self) -> bool:
        """Whether its next token can be run now: there is one to come, and nothing about it hangs on a token
        in flight (penalties do)."""
        if self.num_launched_outputs >= max(self.request.max_tokens, 1):
            return False
        return self.processor is None or not self.num_in_flight

    def append(self, token_id: int) -> None:
        """A step's token has been read."""
        if self.token_ids is self.request.prompt_token_ids:
            self.token_ids = list(self.token_ids)
        self.token_ids.append(token_id)
        if self.processor is not None:
            self.processor.append(token_id)

    @property
    def order(self) -> tuple[int, int, float, str, int]:
        """Scheduling order of one that has a turn: the smallest goes first, the largest is preempted
        first."""
        request = self.request
        return (request.priority, self.turn or 0, request.arrival_time, request.request_id, self.index)
