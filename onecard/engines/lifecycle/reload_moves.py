"""How models come to a card that serves, leave it, and change places, without dropping a request.

All of it runs on the event loop; what touches the card's books is posted to its device loop.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from onecard.engines.api import EngineError
from onecard.engines.lifecycle.keeper import POLL_SECONDS, BrokenModelError, Keeper
from onecard.engines.lifecycle.move import join, leave
from onecard.engines.lifecycle.residence import Residence

logger = logging.getLogger(__name__)


async def arrive(keeper: Keeper, residence: Residence) -> None:
    """The model is on the card, asleep; whoever waits at its gate may wake it."""
    async with keeper.moving:
        await keeper.on_loop(partial(join, residence, keeper.pool, keeper.loop))
        residence.gate.state = "unloaded"
        keeper.add(residence)


async def retire(keeper: Keeper, residence: Residence, gone: EngineError) -> None:
    """The model leaves the card once all its requests have finished; who comes later hears `gone`."""
    async with _vacated(keeper, residence, gone):
        residence.gate.state = "unloaded"
        if keeper.residences.get(residence.name) is residence:
            try:
                await keeper.on_loop(partial(_move_away, keeper, residence))
                await keeper.passage.drop(residence)
            except Exception as error:
                logger.exception("%s doesn't leave in good order", residence.name)
                await keeper.passage.wipe_out(residence, error)
            keeper.remove(residence.name)


async def renew(keeper: Keeper, old: Residence, new: Residence, gone: EngineError) -> None:
    """`new` takes the place and the weights of `old` once that has finished its requests: they stay in their
    home, or in host memory if it slept. Its floor is no larger than theirs was: `resize` makes room for more.

    Raises `BrokenModelError` where `new` can't be made ready: nothing of either stays then.
    """
    async with _vacated(keeper, old, gone):
        state, old.gate.state = old.gate.state, "unloaded"
        if state == "failed":
            raise BrokenModelError(f"The model `{old.name}` has failed while it was to be made anew")
        new.weights = old.weights
        new.floor_pages = min(old.floor_pages, new.floor_pages)
        keeper.add(new)
        try:
            await keeper.on_loop(partial(_swap, keeper, old, new, state == "ready"))
            if state == "ready":
                await keeper.passage.move_in(new)
        except Exception as error:
            await keeper.bury(new, error)
            raise BrokenModelError(f"The model `{new.name}` can't be made anew: {error}") from error
        new.gate.turn(state)
        new.gate.touch()


async def bury(keeper: Keeper, residence: Residence, error: BaseException) -> None:
    """Nothing of a model that has failed stays on the card, whatever state it was in."""
    async with keeper.moving:
        await keeper.bury(residence, error)


async def resize(keeper: Keeper, residence: Residence, floor_pages: int, ceiling_pages: int) -> None:
    """Another floor and ceiling; others sleep where they are in the way of a larger floor. Raises
    `ModelUnavailableError` where those that never sleep are."""
    change = partial(set_share, keeper, residence, floor_pages, ceiling_pages)
    async with keeper.moving:
        if floor_pages <= residence.floor_pages or not keeper.pool.has_home(residence.name):
            await keeper.on_loop(change)
            return
    before, residence.floor_pages = residence.floor_pages, floor_pages
    try:
        async with keeper.room_for(residence):
            await keeper.on_loop(change)
    except EngineError:
        residence.floor_pages = before
        raise


def set_share(keeper: Keeper, residence: Residence, floor_pages: int, ceiling_pages: int) -> None:
    """On the card's loop, while nothing moves. A model that sleeps has its floor when it wakes up."""
    residence.floor_pages, residence.ceiling_pages = floor_pages, ceiling_pages
    if residence.name in keeper.pool.engines:
        there = keeper.pool.has_home(residence.name)
        keeper.pool.set_share(residence.name, floor_pages if there else 0, ceiling_pages)


@asynccontextmanager
async def _vacated(keeper: Keeper, residence: Residence, gone: EngineError) -> AsyncIterator[None]:
    """Once nobody is there any more: nobody comes, and nothing on the card moves, meanwhile."""
    while True:
        while not await _has_gone_quiet(keeper, residence):
            await asyncio.sleep(POLL_SECONDS)
        async with keeper.moving:
            if await _has_gone_quiet(keeper, residence):
                residence.gate.refusal = residence.gate.refusal or gone
                yield
                return


async def _has_gone_quiet(keeper: Keeper, residence: Residence) -> bool:
    """Nothing runs, waits, or is on its way through the loop's inbox, nor does the model wake up or go to
    sleep. Whoever was let in while the loop was asked may be on the way there yet."""
    if residence.busy or not keeper.is_settled(residence):
        return False
    uses = residence.gate.num_uses
    await keeper.on_loop(lambda: None)
    return not residence.busy and residence.gate.num_uses == uses and keeper.is_settled(residence)


def _move_away(keeper: Keeper, residence: Residence) -> None:
    there = keeper.pool.has_home(residence.name)
    if there:
        residence.tenancy.move_out()
    residence.tenancy.close()
    leave(residence, keeper.pool, keeper.loop)
    if there:
        keeper.passage.release_home(residence)


def _swap(keeper: Keeper, old: Residence, new: Residence, awake: bool) -> None:
    if awake:
        old.tenancy.move_out()
    old.tenancy.close()
    leave(old, keeper.pool, keeper.loop)
    join(new, keeper.pool, keeper.loop)
    if awake:
        keeper.passage.set_share(new)
