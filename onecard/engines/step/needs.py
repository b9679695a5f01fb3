"""A model's part of the memory plan: the terms that every kind has."""

from onecard.engines.memory.card_plan import CardFacts, ModelNeeds
from onecard.engines.weights.loader import WeightBytes
from onecard.registry.spec import ModelSpec


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
