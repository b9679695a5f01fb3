"""How a model's weights leave their card and come back, step by step. The keeper says whose, and when."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from functools import partial

from onecard.engines.api import ModelUnavailableError, SleepLevel
from onecard.engines.lifecycle.home_weights import CardMoment
from onecard.engines.lifecycle.move import leave
from onecard.engines.lifecycle.residence import Residence
from onecard.engines.memory.arena import DeviceArena
from onecard.engines.memory.page_pool import PagePool
from onecard.engines.runtime.device_loop import DeviceLoop
from onecard.engines.runtime.failures import classify
from onecard.engines.runtime.heap import give_back_heap
from onecard.engines.runtime.worker import run_aside, run_on

logger = logging.getLogger(__name__)

CLAIM_TRIES = 100
CLAIM_POLL_SECONDS = 0.01


class Passage:
    """One a card, one model at a time. What is a coroutine is awaited on the event loop, the rest runs on the
    card's loop."""

    def __init__(self, arena: DeviceArena, pool: PagePool, loop: DeviceLoop):
        self._arena, self._pool, self._loop = arena, pool, loop

    # --- off the card ----------------------------------------------------------------

    async def leave(self, residence: Residence, level: SleepLevel) -> SleepLevel:
        """The model is awake and has no requests. Returns the level at which it sleeps then: 2 where host
        memory can't hold the copy."""
        await run_on(self._loop, partial(self._move_out, residence))
        if level == 1 and not await self._save(residence):
            level = 2
        if level == 2:
            await self.drop(residence)
        await run_on(self._loop, partial(self.release_home, residence))
        return level

    async def drop(self, residence: Residence) -> None:
        """Nothing of the weights stays, at home or elsewhere."""
        residence.weights.drop()
        await run_on(self._loop, residence.tenancy.forget)
        await run_aside(give_back_heap)

    def release_home(self, residence: Residence) -> None:
        self._pool.release_home(residence.name)
        self._arena.discard(residence.weights.home)

    async def _save(self, residence: Residence) -> bool:
        """False where host memory can't hold the copy: the weights are read again on waking, then."""
        try:
            await run_aside(residence.weights.save)
        except (MemoryError, RuntimeError) as error:
            logger.warning("%s: its weights can't be kept in host memory: %s", residence.name, error)
            return False
        return True

    def _move_out(self, residence: Residence) -> None:
        residence.tenancy.move_out()
        if residence.name in self._pool.engines:
            self._pool.set_share(residence.name, 0, residence.ceiling_pages)

    # --- back on the card ------------------------------------------------------------

    async def claim(self, residence: Residence) -> CardMoment:
        """The home's pages, whoever has them now; and when the card is done with what it had in them. Raises
        `ModelUnavailableError` where they can't be had."""

        def claim() -> CardMoment | None:
            if not self._pool.claim_home(residence.name, residence.weights.home):
                return None
            return CardMoment.now(self._arena.device)

        for _ in range(CLAIM_TRIES):
            moment = await run_on(self._loop, claim)
            if moment is not None:
                return moment
            await asyncio.sleep(CLAIM_POLL_SECONDS)
        raise ModelUnavailableError(f"The model `{residence.name}` gets no memory now; try again later.")

    async def come_back(self, residence: Residence, moment: CardMoment) -> None:
        """To a home that was claimed at `moment`. Where it fails, `give_up` or `wipe_out` follows."""
        weights = residence.weights
        if weights.host_bytes or weights.model is not None:
            await run_aside(partial(weights.restore, moment))
        else:
            await run_aside(partial(weights.load, residence.on_load))
        await run_on(self._loop, partial(self.set_share, residence))
        await self.move_in(residence)

    async def move_in(self, residence: Residence) -> None:
        """The weights are at home. Other engines' steps run between two of the first ones of this."""
        assert residence.weights.model is not None
        first_steps = residence.tenancy.move_in(residence.weights.model)
        try:
            while await run_on(self._loop, partial(_go_on, first_steps)):
                pass
        except BaseException:
            await run_on(self._loop, first_steps.close)
            raise

    async def give_up(self, residence: Residence, error: BaseException) -> None:
        """The model couldn't be brought back: nothing of it stays but its account, its requests included.
        Raises where that can't be done in good order."""
        await run_on(self._loop, partial(self._give_up, residence, error))

    async def wipe_out(self, residence: Residence, error: BaseException) -> None:
        """Nothing of a model stays on the card, in whatever order or disorder it was left."""
        await run_on(self._loop, partial(self._wipe_out, residence, error))
        await self.drop(residence)

    def set_share(self, residence: Residence) -> None:
        if residence.name in self._pool.engines:
            self._pool.set_share(residence.name, residence.floor_pages, residence.ceiling_pages)

    def _give_up(self, residence: Residence, error: BaseException) -> None:
        self._loop.deliver(residence.engine.give_up(error))
        residence.tenancy.forget()
        self._move_out(residence)
        self.release_home(residence)
        residence.weights.drop()

    def _wipe_out(self, residence: Residence, error: BaseException) -> None:
        """Each on its own: what one of them can't do keeps nobody else out of the card's memory."""
        if residence.reclaimer is None or residence.name in self._pool.engines:
            _in_any_case(residence, lambda: self._loop.deliver(residence.engine.give_up(error)))
        _in_any_case(residence, residence.tenancy.close)
        _in_any_case(residence, partial(leave, residence, self._pool, self._loop))
        if self._pool.has_home(residence.name):
            _in_any_case(residence, partial(self.release_home, residence))


def _go_on(steps: Iterator[None]) -> bool:
    """Whether there was one more."""
    return next(steps, steps) is not steps


def _in_any_case(residence: Residence, call: Callable[[], None]) -> None:
    try:
        call()
    except Exception as error:
        if classify(error) == "fatal":
            raise
        logger.exception("%s doesn't leave in good order", residence.name)
