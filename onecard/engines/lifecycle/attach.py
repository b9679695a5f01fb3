"""How a model's engine is put on its card: what the builders of each kind need to know."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from onecard.engines.lifecycle.card_model import CardModel, Policy
from onecard.engines.lifecycle.gate import Gate
from onecard.engines.lifecycle.home_weights import HomeWeights, Load
from onecard.engines.memory.card_plan import ModelPlan
from onecard.engines.runtime.card_handle import CardHandle
from onecard.engines.step.core import StepCore
from onecard.engines.step.hooks import EngineHooks
from onecard.registry.spec import ModelSpec

Count = Callable[[int, int], None]
"""Told (done, all)."""


@dataclass(frozen=True)
class Placement:
    """A model's share of a card, and how it gets going there."""

    card: CardHandle
    share: ModelPlan
    gate: Gate
    warm_up: bool = True
    """Whether steps run before the first request."""
    on_load: Count | None = None
    on_capture: Count | None = None

    def card_model(
        self,
        spec: ModelSpec,
        load: Load,
        engine: StepCore[Any, Any],
        hooks: EngineHooks,
    ) -> CardModel:
        """The model isn't on its card yet: it joins, and is brought in, through the `WeightMover`."""
        return CardModel(
            name=spec.name,
            gate=self.gate,
            weights=HomeWeights(self.card.arena, self.share.home, load),
            engine=engine,
            hooks=hooks,
            policy=policy_of(spec),
            floor_pages=self.share.floor_pages,
            ceiling_pages=self.share.ceiling_pages,
            longest_pages=self.share.longest_pages,
            on_load=self.on_load,
        )


def policy_of(spec: ModelSpec) -> Policy:
    return Policy(spec.pinned, spec.ttl, spec.sleep_level)
