"""From a model's files to an engine on an open card: the same at start and on a reload."""

from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from onecard.engines.api import LoadProgress, StatsSink
from onecard.engines.kinds.needs import model_needs, read_config
from onecard.engines.lifecycle.attach import Placement
from onecard.engines.lifecycle.gate import Gate, WakeTimeout
from onecard.engines.memory.card_plan import CardFacts, ModelPlan
from onecard.engines.models.config import EncoderConfig
from onecard.engines.node.reports import encoder_status, llm_status
from onecard.engines.node.served import Blueprint, Card, ModelReport, ServedModel
from onecard.engines.oneshot.build import build_encoder
from onecard.engines.paged.build import build_llm
from onecard.engines.step.step_size import StepSize, step_size
from onecard.registry.spec import ModelSpec


@dataclass(frozen=True)
class NodeContext:
    """What all models of a node share."""

    executor: Executor
    """Its threads tokenise."""
    stats: StatsSink
    progress: LoadProgress
    warm_up: bool
    wake_timeout: WakeTimeout


def read_model(spec: ModelSpec, path: Path, facts: CardFacts) -> Blueprint:
    """Reads headers only. Raises `PlanError`, and the loader's errors where the files can't be served."""
    config = read_config(spec, path)
    needs = model_needs(spec, config, path, facts)
    return Blueprint(spec, path, config, needs, steps_of(spec, facts, needs.max_model_len))


def steps_of(spec: ModelSpec, facts: CardFacts, max_model_len: int) -> StepSize:
    return step_size(spec, facts.device.split(":")[0], max_model_len)


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


def build_model(blueprint: Blueprint, share: ModelPlan, card: Card, context: NodeContext) -> ServedModel:
    """The model with its share of the card, not yet known there: nothing of the card is touched.

    Any thread may call it. Raises what tokenizers and templates that can't be read raise.
    """
    spec, path, config = blueprint.spec, blueprint.path, blueprint.config
    place = Placement(
        card.handle,
        share,
        Gate(spec.name, card.manager, context.wake_timeout, "loading"),
        context.warm_up,
        on_load=partial(context.progress, spec.name),
        on_capture=partial(_captured, context.progress, spec.name),
    )
    if isinstance(config, EncoderConfig):
        encoder, card_model = build_encoder(spec, config, path, place)
        report: ModelReport = partial(encoder_status, encoder, card_model, card)
        return ServedModel(blueprint, card, encoder, card_model, report)
    llm, card_model = build_llm(spec, config, path, place)
    block_bytes = blueprint.needs.block_bytes or 0
    report = partial(llm_status, llm, card_model, card, block_bytes)
    return ServedModel(blueprint, card, llm, card_model, report)


def _captured(progress: LoadProgress, model: str, done: int, total: int) -> None:
    progress(model, done, total, "graphs")
