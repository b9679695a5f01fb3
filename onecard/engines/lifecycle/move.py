"""How a model's engine is put on its card: what the builders of each kind need to know."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from onecard.engines.lifecycle.gate import Gate, WakeTimeout
from onecard.engines.lifecycle.home_weights import HomeWeights, Load
from onecard.engines.lifecycle.residence import Policy, RankedEngine, Residence, Tenancy
from onecard.engines.memory.card_plan import ModelPlan
from onecard.engines.memory.page_pool import PagePool
from onecard.engines.memory.reclaim import Reclaimer
from onecard.engines.runtime.card_handle import CardHandle
from onecard.engines.runtime.device_loop import DeviceLoop
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

    def residence(
        self,
        spec: ModelSpec,
        gate: Gate,
        load: Load,
        engine: RankedEngine,
        tenancy: Tenancy,
        reclaimer: Reclaimer | None = None,
    ) -> Residence:
        """The model isn't on its card yet: `join` makes it known there, `move_in` or the keeper brings it
        in."""
        gate.state, gate.timeout = "unloaded", self.wake_timeout
        return Residence(
            name=spec.name,
            gate=gate,
            weights=HomeWeights(self.card.arena, self.share.home, load),
            engine=engine,
            reclaimer=reclaimer,
            tenancy=tenancy,
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


def join(residence: Residence, pool: PagePool, loop: DeviceLoop) -> None:
    """The model, asleep, gets an account in the pool and takes turns on the loop: on the loop's thread, or
    before it has one."""
    if residence.reclaimer is not None:
        pool.add_engine(residence.name, 0, residence.ceiling_pages, residence.reclaimer)
    loop.add_engine(residence.engine)


def leave(residence: Residence, pool: PagePool, loop: DeviceLoop) -> None:
    """Undoes `join`. The engine has no requests and owns no pages; its home may still be claimed."""
    loop.remove_engine(residence.name)
    if residence.name in pool.engines:
        pool.remove_engine(residence.name)


def move_in(residence: Residence, card: CardHandle) -> None:
    """Bring a model to its card before the card's loop runs. Blocks while the weights load."""
    if not card.pool.claim_home(residence.name, residence.weights.home):
        raise RuntimeError(f"{residence.name}: pages {residence.weights.home} of its home are taken")
    residence.weights.load(residence.on_load)
    if residence.name in card.pool.engines:
        card.pool.set_share(residence.name, residence.floor_pages, residence.ceiling_pages)
    assert residence.weights.model is not None
    with _on(card.device):
        for _ in residence.tenancy.move_in(residence.weights.model):
            pass
    residence.gate.state = "ready"
