"""From a blueprint to a model with its share of an open card: the same at start and on a reload."""

from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

from onecard.engines.api import LoadProgress, StatsSink
from onecard.engines.kinds import KINDS
from onecard.engines.kinds.kind import Blueprint
from onecard.engines.lifecycle.attach import Placement
from onecard.engines.lifecycle.gate import Gate, WakeTimeout
from onecard.engines.memory.card_plan import ModelPlan
from onecard.engines.node.served import Card, ServedModel


@dataclass(frozen=True)
class NodeContext:
    """What all models of a node share."""

    executor: Executor
    """Its threads tokenise."""
    stats: StatsSink
    progress: LoadProgress
    warm_up: bool
    wake_timeout: WakeTimeout


def build_served(blueprint: Blueprint, share: ModelPlan, card: Card, context: NodeContext) -> ServedModel:
    """The model with its share of the card, not yet known there: nothing of the card is touched.

    Any thread may call it. Raises what tokenizers and templates that can't be read raise.
    """
    spec = blueprint.spec
    place = Placement(
        card.handle,
        share,
        Gate(spec.name, card.manager, context.wake_timeout, "loading"),
        context.warm_up,
        on_load=partial(context.progress, spec.name),
        on_capture=partial(_captured, context.progress, spec.name),
    )
    engine, card_model = KINDS[spec.kind].build(blueprint, place)
    return ServedModel(blueprint, card, engine, card_model)


def _captured(progress: LoadProgress, model: str, done: int, total: int) -> None:
    progress(model, done, total, "graphs")
