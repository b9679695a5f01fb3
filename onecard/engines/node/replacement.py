"""Models that come to a card that serves, leave it, or change places with their next incarnation, without
dropping a request: one at a time or side by side.

A name is routable from the moment a replacement is announced: requests wait at the new engine's gate while
the old one finishes what it was given. Two engines of one name are never on a card together.
"""

import logging
from dataclasses import dataclass, replace
from functools import partial

from onecard.engines.api import EngineError, ModelNotFoundError, ModelUnavailableError
from onecard.engines.lifecycle.card_model import CardModel
from onecard.engines.lifecycle.manager import LifecycleManager
from onecard.engines.lifecycle.weight_mover import BrokenModelError, WeightMover
from onecard.engines.node.served import ServedModel

logger = logging.getLogger(__name__)


@dataclass
class Replacement:
    """`old` goes, `new` comes; one of them may be None. `keeps_weights`: `new` takes over those of `old`.
    `wakes`: it is to be awake at the end.
    """

    old: ServedModel | None = None
    new: ServedModel | None = None
    keeps_weights: bool = False
    wakes: bool = False

    def announce(self) -> None:
        """Requests wait for the new engine from now on; the old one may be asked to make room."""
        if self.old is not None:
            self.old.card_model.policy = replace(self.old.card_model.policy, pinned=False)

    async def carry_out(self) -> str | None:
        """Returns what went wrong: then the new model has failed, or there is no room for it or its floor."""
        try:
            await self._carry_out()
        except BrokenModelError as error:
            return await self._fail(error)
        except EngineError as error:
            return str(error)
        except Exception as error:
            name = self.new.info.name if self.new is not None else "a model that leaves"
            logger.exception("%s can't be brought to its card, or off it", name)
            return await self._fail(BrokenModelError(f"The model `{name}` can't be served: {error}"))
        return None

    async def _carry_out(self) -> None:
        old, new = self.old, self.new
        if new is None:
            assert old is not None
            await retire(old.card.manager, old.card_model, _removed(old))
            return
        manager, card_model = new.card.manager, new.card_model
        floor, ceiling = card_model.floor_pages, card_model.ceiling_pages
        if old is not None and self.keeps_weights:
            await renew(manager, old.card_model, card_model, _replaced(old))
        else:
            if old is not None:
                await retire(old.card.manager, old.card_model, _replaced(old))
            await arrive(manager, card_model)
        if card_model.floor_pages < floor:
            await resize(manager, card_model, floor, ceiling)
        if self.wakes and not card_model.awake:
            await manager.wake(new.info.name)

    async def _fail(self, error: ModelUnavailableError) -> str:
        if self.new is not None:
            self.new.card_model.gate.fail(error)
            await self.new.card.manager.discard(self.new.card_model, error)
        return str(error)


async def arrive(manager: LifecycleManager, card_model: CardModel) -> None:
    """The model is on the card, asleep; whoever waits at its gate may wake it."""
    async with manager.still():
        await manager.on_loop(partial(manager.mover.join, card_model))
        card_model.gate.turn("unloaded")
        manager.add(card_model)


async def retire(manager: LifecycleManager, card_model: CardModel, gone: EngineError) -> None:
    """The model leaves the card once all its requests have finished; who comes later hears `gone`."""
    async with manager.vacated(card_model, gone):
        card_model.gate.state = "unloaded"
        if manager.card_models.get(card_model.name) is card_model:
            try:
                if manager.pool.has_home(card_model.name):
                    await manager.mover.leave(card_model, level=2)
                else:
                    await manager.mover.drop(card_model)
                await manager.on_loop(partial(manager.mover.part, card_model))
            except Exception as error:
                logger.exception("%s doesn't leave in good order", card_model.name)
                await manager.mover.wipe_out(card_model, error)
            manager.remove(card_model)


async def renew(manager: LifecycleManager, old: CardModel, new: CardModel, gone: EngineError) -> None:
    """`new` takes the place and the weights of `old` once that has finished its requests: they stay in their
    home, or in host memory if it slept. Its floor is no larger than theirs was: `resize` makes room for more.

    Raises `BrokenModelError` where `new` can't be made ready: nothing of either stays then.
    """
    async with manager.vacated(old, gone):
        state, old.gate.state = old.gate.state, "unloaded"
        if state == "failed":
            raise BrokenModelError(f"The model `{old.name}` has failed while it was to be made anew")
        new.weights = old.weights
        new.floor_pages = min(old.floor_pages, new.floor_pages)
        manager.add(new)
        try:
            await manager.on_loop(partial(_swap, manager.mover, old, new, state == "ready"))
            if state == "ready":
                await manager.mover.move_in(new)
        except Exception as error:
            await manager.clear_away(new, error)
            raise BrokenModelError(f"The model `{new.name}` can't be made anew: {error}") from error
        new.gate.turn(state)
        new.gate.touch()


async def resize(
    manager: LifecycleManager, card_model: CardModel, floor_pages: int, ceiling_pages: int
) -> None:
    """Another floor and ceiling; others sleep where they are in the way of a larger floor. Raises
    `ModelUnavailableError` where those that never sleep are."""
    async with manager.room_for(card_model, floor_pages):
        await manager.on_loop(partial(manager.mover.allot, card_model, floor_pages, ceiling_pages))


def _swap(mover: WeightMover, old: CardModel, new: CardModel, awake: bool) -> None:
    if awake:
        old.hooks.move_out()
    mover.part(old)
    mover.join(new)
    if awake:
        mover.allot(new, new.floor_pages, new.ceiling_pages)


def _removed(model: ServedModel) -> ModelNotFoundError:
    said = f"The model `{model.info.name}` is no longer served."
    return ModelNotFoundError(said, param="model", code="model_not_found")


def _replaced(model: ServedModel) -> ModelUnavailableError:
    return ModelUnavailableError(
        f"The model `{model.info.name}` was replaced while this request was on its way; send it again."
    )
