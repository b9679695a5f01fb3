"""Which kinds of models are served."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from onecard.engines.kinds.embedding import EmbeddingKind
from onecard.engines.kinds.kind import Blueprint, Kind
from onecard.engines.kinds.llm import LanguageModelKind
from onecard.engines.kinds.reranker import RerankerKind
from onecard.engines.memory.card_plan import CardFacts
from onecard.engines.step.sizes import StepSize
from onecard.registry.spec import ModelSpec

KINDS: Mapping[str, Kind] = {
    "llm": LanguageModelKind(),
    "embedding": EmbeddingKind(),
    "reranker": RerankerKind(),
}


def read_model(spec: ModelSpec, path: Path, facts: CardFacts) -> Blueprint:
    """Reads headers only. Raises `PlanError`, and the loader's errors where the files can't be served."""
    kind = KINDS[spec.kind]
    headers = kind.read(spec, path)
    size = steps_of(spec, facts, headers.max_model_len)
    return Blueprint(spec, path, headers, kind.needs(spec, headers, size, facts), size)


def steps_of(spec: ModelSpec, facts: CardFacts, max_model_len: int) -> StepSize:
    return KINDS[spec.kind].step_size(spec, facts.device.split(":")[0], max_model_len)


def retuned(blueprint: Blueprint, spec: ModelSpec, facts: CardFacts) -> Blueprint:
    """The same model, whose spec has changed in what may change while it runs."""
    needs = replace(
        blueprint.needs,
        floor=spec.memory.of(facts.budget_bytes),
        ceiling=spec.burst.of(facts.budget_bytes),
        pinned=spec.pinned,
        preload=spec.preload,
    )
    return replace(blueprint, spec=spec, needs=needs)
