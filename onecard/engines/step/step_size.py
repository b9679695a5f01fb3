"""How much one step of a model may compute at most, where the registry leaves it open."""

from dataclasses import dataclass

from onecard.registry.spec import EngineSpec

ON_CPU = (2048, 64)
"""(tokens, sequences) of a step. A GPU wants thousands of rows before arithmetic is what bounds its matrix
products; a CPU is there with hundreds, and 2048 keep it busy long enough."""


@dataclass(frozen=True)
class StepSize:
    """The registry's `max_num_batched_tokens` and `max_num_seqs`, decided."""

    max_num_batched_tokens: int
    max_num_seqs: int


def step_size(asked: EngineSpec, auto: tuple[int, int], least_tokens: int = 0) -> StepSize:
    """What the registry asks for, and for what it leaves open a size that fits: `auto` (tokens, sequences),
    `least_tokens` at least, and always the other one."""
    tokens, seqs = asked.max_num_batched_tokens, asked.max_num_seqs
    if seqs is None:
        seqs = auto[1] if tokens is None else min(auto[1], tokens)
    return StepSize(max(auto[0], seqs, least_tokens) if tokens is None else tokens, seqs)
