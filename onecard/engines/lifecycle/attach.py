"""How a model's engine is put on its card: what the builders of each kind need to know."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from onecard.engines.lifecycle.card_model import CardModel, Policy
from onecard.engines.lifecycle.gate import Gate, WakeTimeout
from onecard.engines.lifecycle.home_weights import HomeWeights, Load
from onecard.engines.memory.card_plan import ModelPlan
from onecard.engines.memory.page_pool import PagePool
from onecard.engines.runtime.card_handle import CardHandle
from onecard.engines.runtime.device_loop import DeviceLoop
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
    wake_timeout: WakeTimeout | None = None
    warm_up: bool = True
    """Whether steps run before the first request."""
    on_load: Count | None = None
    on_capture: Count | None = None

    def card_model(
        self,
        spec: ModelSpec,
        gate: Gate,
        load: Load,
        engine: StepCore[Any, Any],
        hooks: EngineHooks,
    ) -> CardModel:
        """The model isn't on its card yet: `join` makes it known there, `move_in` or the manager brings it
        in."""
        gate.state, gate.timeout = "unloaded", self.wake_timeout
        return CardModel(
            name=spec.name,
            gate=gate,
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


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the thread's current card; a device loop's thread has set its own."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def join(card_model: CardModel, pool: PagePool, loop: DeviceLoop) -> None:
    """The model, asleep, gets an account in the pool and takes turns on the loop: on the loop's thread, or
    before it has one."""
    if card_model.reclaimer is not None:
        pool.add_engine(card_model.name, 0, card_model.ceiling_pages, card_model.reclaimer)
    loop.add_engine(card_model.engine)


def leave(card_model: CardModel, pool: PagePool, loop: DeviceLoop) -> None:
    """Undoes `join`. The engine has no requests and owns no pages; its home may still be claimed."""
    loop.remove_engine(card_model.name)
    if card_model.name in pool.engines:
        pool.remove_engine(card_model.name)


def move_in(card_model: CardModel, card: CardHandle) -> None:
    """Bring a model to its card before the card's loop runs. Blocks while the weights load."""
    if not card.pool.claim_home(card_model.name, card_model.weights.home):
        raise RuntimeError(f"{card_model.name}: pages {card_model.weights.home} of its home are taken")
    card_model.weights.load(card_model.on_load)
    if card_model.name in card.pool.engines:
        card.pool.set_share(card_model.name, card_model.floor_pages, card_model.ceiling_pages)
    assert card_model.weights.model is not None
    with _on(card.device):
        for _ in card_model.hooks.move_in(card_model.weights.model):
            pass
    card_model.gate.state = "ready"
