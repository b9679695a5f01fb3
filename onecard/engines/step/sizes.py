"""How much a model computes in a step, and what it needs of a card: the terms that every kind has."""

from dataclasses import dataclass

from onecard.engines.memory.card_plan import CardFacts, ModelNeeds, PlanError
from onecard.engines.weights.loader import WeightBytes
from onecard.registry.spec import EngineSpec, ModelSpec

ON_CPU = (2048, 64)
"""(tokens, sequences) of a step. A GPU wants thousands of rows before arithmetic is what bounds its matrix
products; a CPU is there with hundreds, and 2048 keep it busy long enough."""


@dataclass(frozen=True)
class StepSize:
    """The registry's `max_num_batched_tokens` and `max_num_seqs`, decided."""

    max_num_batched_tokens: int
    max_num_seqs: int


def longest_text(spec: ModelSpec, own: int, most: int | None = None) -> int:
    """The registry's `max_model_len`, decided: by itself the model's `own`. Raises `PlanError` above that, or
    above `most` where that is what its positions can be stretched to."""
    asked, most = spec.engine.max_model_len or own, most or own
    if asked < 2:
        raise PlanError(
            f"{spec.name}: `max_model_len: {asked}` leaves room for no text: it is 2 at least, "
            "or leave it out"
        )
    if asked > most:
        raise PlanError(
            f"{spec.name}: `max_model_len: {asked}` is above the model's own {most}, beyond which it was not "
            f"trained: set it to at most {most}, or leave it out"
        )
    return asked


def step_size(asked: EngineSpec, auto: tuple[int, int], least_tokens: int = 0) -> StepSize:
    """What the registry asks for, and for what it leaves open a size that fits: `auto` (tokens, sequences),
    `least_tokens` at least, and always the other one."""
    tokens, seqs = asked.max_num_batched_tokens, asked.max_num_seqs
    if seqs is None:
        seqs = auto[1] if tokens is None else min(auto[1], tokens)
    return StepSize(max(auto[0], seqs, least_tokens) if tokens is None else tokens, seqs)


def model_needs(
    spec: ModelSpec,
    facts: CardFacts,
    weights: WeightBytes,
    workspace_bytes: int,
    max_model_len: int,
    block_bytes: int | None = None,
    graph_bytes: int = 0,
) -> ModelNeeds:
    """`facts.budget_bytes` is what the registry's fractions are shares of."""
    return ModelNeeds(
        name=spec.name,
        kind=spec.kind,
        home_bytes=weights.home,
        packed_bytes=weights.packed,
        workspace_bytes=workspace_bytes,
        block_bytes=block_bytes,
        block_size=spec.engine.block_size,
        max_model_len=max_model_len,
        floor=spec.memory.of(facts.budget_bytes),
        ceiling=spec.burst.of(facts.budget_bytes),
        pinned=spec.pinned,
        preload=spec.preload,
        graph_bytes=graph_bytes,
    )
