"""What one step computes, as the scheduler says it."""

from dataclasses import dataclass, field

from onecard.engines.paged.request import Sequence
from onecard.engines.runtime.step_budget import StepShape


@dataclass(frozen=True)
class ScheduledSequence:
    """`num_tokens` of `sequence` run in this step, from position `start` on.

    `samples`: the step reaches the sequence's last token, so its output token number `output_index` is
    sampled.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    samples: bool
    output_index: int

    @classmethod
    def take(cls, sequence: Sequence, num_tokens: int) -> "ScheduledSequence":
        """Schedule the sequence's next `num_tokens`: from now on they count as computed."""
        start = sequence.num_computed_tokens
        samples = start + num_tokens == sequence.num_tokens
        item = cls(sequence, start, num_tokens, samples, sequence.num_launched_outputs)
        sequence.num_computed_tokens += num_tokens
        sequence.num_in_flight += samples
        return item

    def give_back(self) -> None:
        """The newest step of the sequence never ran: what it was to compute is still to be computed."""
        self.sequence.num_computed_tokens -= self.num_tokens
        self.sequence.num_in_flight -= self.samples


@dataclass
class Schedule:
    """One step: decodes first, then prefill chunks."""

    items: list[ScheduledSequence] = field(default_factory=list)
    num_decodes: int = 0
    preempted: list[Sequence] = field(default_factory=list)
    prefix_queries: int = 0
    prefix_hits: int = 0
    num_deferred: int = 0
    """Waiting sequences that wait for something else than room: a prefix, or a token, in flight."""
    too_large: list[Sequence] = field(default_factory=list)
    """Finished for good: they need more blocks than the engine may have, with no other request in the way."""

    @property
    def num_tokens(self) -> int:
        return sum(item.num_tokens for item in self.items)

    @property
    def shape(self) -> StepShape:
        """What it costs, for the cost model."""
        context = sum(item.start + item.num_tokens for item in self.items)
        return StepShape(self.num_tokens, len(self.items), context)
