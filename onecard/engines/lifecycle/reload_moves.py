"""How models come to a card that serves, leave it, and change places, without dropping a request.

All of it runs on the event loop; what touches the card's books is posted to its device loop.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from onecard.engines.api import EngineError
from onecard.engines.lifecycle.attach import join, leave
from onecard.engines.lifecycle.card_model import CardModel
from onecard.engines.lifecycle.manager import POLL_SECONDS, BrokenModelError, LifecycleManager

logger = logging.getLogger(__name__)


async def arrive(manager: LifecycleManager, card_model: CardModel) -> None:
    """The model is on the card, asleep; whoever waits at its gate may wake it."""
    async with manager.moving:
        await manager.on_loop(partial(join, card_model, manager.pool, manager.loop))
        card_model.gate.state = "unloaded"
        manager.add(card_model)


async def retire(manager: LifecycleManager, card_model: CardModel, gone: EngineError) -> None:
    """The model leaves the card once all its requests have finished; who comes later hears `gone`."""
    async with _vacated(manager, card_model, gone):
        card_model.gate.state = "unloaded"
        if manager.card_models.get(card_model.name) is card_model:
            try:
                await manager.on_loop(partial(_move_away, manager, card_model))
                await manager.mover.drop(card_model)
            except Exception as error:
                logger.exception("%s doesn't leave in good order", card_model.name)
                await manager.mover.wipe_out(card_model, error)
            manager.remove(card_model.name)


async def renew(manager: LifecycleManager, old: CardModel, new: CardModel, gone: EngineError) -> None:
    """`new` takes the place and the weights of `old` once that has finished its requests: they stay in their
    home, or in host memory if it slept. Its floor is no larger than theirs was: `resize` makes room for more.

    Raises `BrokenModelError` where `new` can't be made ready: nothing of either stays then.
    """
    async with _vacated(manager, old, gone):
        state, old.gate.state = old.gate.state, "unloaded"
        if state == "failed":
            raise BrokenModelError(f"The model `{old.name}` has failed while it was to be made anew")
        new.weights = old.weights
        new.floor_pages = min(old.floor_pages, new.floor_pages)
        manager.add(new)
        try:
            await manager.on_loop(partial(_swap, manager, old, new, state == "ready"))
            if state == "ready":
                await manager.mover.move_in(new)
        except Exception as error:
            await manager.discard(new, error)
            raise BrokenModelError(f"The model `{new.name}` can't be made anew: {error}") from error
        new.gate.turn(state)
        new.gate.touch()


async def discard(manager: LifecycleManager, card_model: CardModel, error: BaseException) -> None:
    """Nothing of a model that has failed stays on the card, whatever state it was in."""
    async with manager.moving:
        await manager.discard(card_model, error)


async def resize(
    manager: LifecycleManager, card_model: CardModel, floor_pages: int, ceiling_pages: int
) -> None:
    """Another floor and ceiling; others sleep where they are in the way of a larger floor. Raises
    `ModelUnavailableError` where those that never sleep are."""
    change = partial(set_share, manager, card_model, floor_pages, ceiling_pages)
    async with manager.moving:
        if floor_pages <= card_model.floor_pages or not manager.pool.has_home(card_model.name):
            await manager.on_loop(change)
            return
    before, card_model.floor_pages = card_model.floor_pages, floor_pages
    try:
        async with manager.room_for(card_model):
            await manager.on_loop(change)
    except EngineError:
        card_model.floor_pages = before
        raise


def set_share(manager: LifecycleManager, card_model: CardModel, floor_pages: int, ceiling_pages: int) -> None:
    """On the card's loop, while nothing moves. A model that sleeps has its floor when it wakes up."""
    card_model.floor_pages, card_model.ceiling_pages = floor_pages, ceiling_pages
    if card_model.name in manager.pool.engines:
        there = manager.pool.has_home(card_model.name)
        manager.pool.set_share(card_model.name, floor_pages if there else 0, ceiling_pages)


@asynccontextmanager
async def _vacated(
    manager: LifecycleManager, card_model: CardModel, gone: EngineError
) -> AsyncIterator[None]:
    """Once nobody is there any more: nobody comes, and nothing on the card moves, meanwhile."""
    while True:
        while not await _has_gone_quiet(manager, card_model):
            await asyncio.sleep(POLL_SECONDS)
        async with manager.moving:
            if await _has_gone_quiet(manager, card_model):
                card_model.gate.refusal = card_model.gate.refusal or gone
                yield
                return


async def _has_gone_quiet(manager: LifecycleManager, card_model: CardModel) -> bool:
    """Nothing runs, waits, or is on its way through the loop's inbox, nor does the model wake up or go to
    sleep. Whoever was let in while the loop was asked may be on the way there yet."""
    if card_model.busy or not manager.is_settled(card_model):
        return False
    uses = card_model.gate.num_uses
    await manager.on_loop(lambda: None)
    return not card_model.busy and card_model.gate.num_uses == uses and manager.is_settled(card_model)


def _move_away(manager: LifecycleManager, card_model: CardModel) -> None:
    there = manager.pool.has_home(card_model.name)
    if there:
        card_model.hooks.move_out()
    card_model.hooks.close()
    leave(card_model, manager.pool, manager.loop)
    if there:
        manager.mover.release_home(card_model)


def _swap(manager: LifecycleManager, old: CardModel, new: CardModel, awake: bool) -> None:
    if awake:
        old.hooks.move_out()
    old.hooks.close()
    leave(old, manager.pool, manager.loop)
    join(new, manager.pool, manager.loop)
    if awake:
        manager.mover.set_share(new)
