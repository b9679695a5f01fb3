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
        awake, residence.gate.state = residence.awake, "unloaded"
        if keeper.residences.get(residence.name) is residence:
            keeper.remove(residence.name)
            try:
                await keeper.on_loop(partial(_move_away, keeper, residence, awake))
            except Exception as error:
                logger.exception("%s doesn't leave in good order", residence.name)
                await keeper.on_loop(partial(_wipe_out, keeper, residence, error))
            await keeper.drop(residence)


async def renew(keeper: Keeper, old: Residence, new: Residence, gone: EngineError) -> None:
    """`new` takes the place and the weights of `old` once that has finished its requests: they stay in their
    home, or in host memory if it slept.

    Raises `BrokenModelError` where `new` can't be made ready: nothing of either stays then.
    """
    async with _vacated(keeper, old, gone):
        state, old.gate.state = old.gate.state, "unloaded"
        if state == "failed":
            raise BrokenModelError(f"The model `{old.name}` has failed while it was to be made anew")
        new.weights = old.weights
        keeper.add(new)
        try:
            if state == "ready":
                await keeper.make_room(new)  # its floor may be a larger one
            await keeper.on_loop(partial(_swap, keeper, old, new, state == "ready"))
        except Exception as error:
            keeper.remove(new.name)
            await keeper.on_loop(partial(_wipe_out, keeper, new, error))
            await keeper.drop(new)
            raise BrokenModelError(f"The model `{new.name}` can't be made anew: {error}") from error
        new.gate.state = state


async def bury(keeper: Keeper, residence: Residence, error: BaseException) -> None:
    """Nothing of a model that has failed stays on the card, whatever state it was in."""
    async with keeper.moving:
        if keeper.residences.get(residence.name) is residence:
            keeper.remove(residence.name)
            await keeper.on_loop(partial(_wipe_out, keeper, residence, error))
            await keeper.drop(residence)


async def resize(keeper: Keeper, residence: Residence, floor_pages: int, ceiling_pages: int) -> None:
    """Another floor and ceiling; others sleep where they are in the way of a larger floor. Raises
    `ModelUnavailableError` where those that never sleep are."""
    async with keeper.moving:
        if residence.awake and floor_pages > residence.floor_pages:
            before, residence.floor_pages = residence.floor_pages, floor_pages
            try:
                await keeper.make_room(residence)
            except EngineError:
                residence.floor_pages = before
                raise
        await keeper.on_loop(partial(set_share, keeper, residence, floor_pages, ceiling_pages))


def set_share(keeper: Keeper, residence: Residence, floor_pages: int, ceiling_pages: int) -> None:
    """On the card's loop, while nothing moves. A model that sleeps has its floor when it wakes up."""
    residence.floor_pages, residence.ceiling_pages = floor_pages, ceiling_pages
    if residence.name in keeper.pool.engines:
        keeper.pool.set_share(residence.name, floor_pages if residence.awake else 0, ceiling_pages)


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
    """Nothing runs, waits, or is on its way through the loop's inbox."""
    if residence.busy:
        return False
    await keeper.on_loop(lambda: None)
    return not residence.busy


def _move_away(keeper: Keeper, residence: Residence, awake: bool) -> None:
    if awake:
        residence.tenancy.move_out()
    residence.tenancy.close()
    leave(residence, keeper.pool, keeper.loop)
    if awake:
        keeper.release_home(residence)


def _swap(keeper: Keeper, old: Residence, new: Residence, awake: bool) -> None:
    if awake:
        old.tenancy.move_out()
    old.tenancy.close()
    leave(old, keeper.pool, keeper.loop)
    join(new, keeper.pool, keeper.loop)
    if awake:
        assert new.weights.model is not None
        keeper.set_share(new)
        new.tenancy.move_in(new.weights.model)


def _wipe_out(keeper: Keeper, residence: Residence, error: BaseException) -> None:
    if residence.reclaimer is None or residence.name in keeper.pool.engines:
        keeper.loop.deliver(residence.engine.give_up(error))
    residence.tenancy.close()
    leave(residence, keeper.pool, keeper.loop)
    if keeper.pool.has_home(residence.name):
        keeper.release_home(residence)
