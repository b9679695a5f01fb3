"""How a model's weights leave their card and come back, step by step. The manager says whose, and when."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

import torch

from onecard.engines.api import EngineError, ModelUnavailableError, SleepLevel
from onecard.engines.lifecycle.card_model import CardModel
from onecard.engines.lifecycle.home_weights import CardMoment
from onecard.engines.memory.arena import DeviceArena
from onecard.engines.memory.page_pool import PagePool
from onecard.engines.runtime.device_loop import DeviceLoop
from onecard.engines.runtime.failures import classify
from onecard.engines.runtime.gate import out_of_service
from onecard.engines.runtime.inbox import run_aside, run_on
from onecard.engines.runtime.memory_use import give_back_heap

logger = logging.getLogger(__name__)

CLAIM_TRIES = 100
CLAIM_POLL_SECONDS = 0.01


class BrokenModelError(ModelUnavailableError):
    """The model itself is at fault: its files, or what its first steps came to."""


class WeightMover:
    """One a card, one model at a time. What is a coroutine is awaited on the event loop, the rest runs on the
    card's loop."""

    def __init__(self, arena: DeviceArena, pool: PagePool, loop: DeviceLoop):
        self._arena, self._pool, self._loop = arena, pool, loop

    # --- accounts --------------------------------------------------------------------

    def join(self, card_model: CardModel) -> None:
        """The model, asleep, gets an account in the pool and takes turns on the loop. The loop may not have
        its thread yet."""
        if card_model.reclaimer is not None:
            self._pool.add_engine(card_model.name, 0, card_model.ceiling_pages, card_model.reclaimer)
        self._loop.add_engine(card_model.engine)

    def part(self, card_model: CardModel) -> None:
        """For good. The engine has no requests and owns no pages; its home may still be claimed."""
        try:
            card_model.hooks.close()
        finally:
            self._loop.remove_engine(card_model.name)
            if card_model.name in self._pool.engines:
                self._pool.remove_engine(card_model.name)

    def allot(self, card_model: CardModel, floor_pages: int, ceiling_pages: int) -> None:
        """The model's share from now on. One that sleeps has its floor when it wakes up."""
        card_model.floor_pages, card_model.ceiling_pages = floor_pages, ceiling_pages
        if card_model.name in self._pool.engines:
            there = self._pool.has_home(card_model.name)
            self._pool.set_share(card_model.name, floor_pages if there else 0, ceiling_pages)

    # --- off the card ----------------------------------------------------------------

    async def leave(self, card_model: CardModel, level: SleepLevel) -> SleepLevel:
        """The model is awake and has no requests. Returns the level at which it sleeps then: 2 where host
        memory can't hold the copy."""
        await run_on(self._loop, partial(self._move_out, card_model))
        if level == 1 and not await self._save(card_model):
            level = 2
        if level == 2:
            await self.drop(card_model)
        await run_on(self._loop, partial(self.release_home, card_model))
        return level

    async def drop(self, card_model: CardModel) -> None:
        """Nothing of the weights stays, at home or elsewhere."""
        card_model.weights.drop()
        await run_on(self._loop, card_model.hooks.forget)
        await run_aside(give_back_heap)

    def release_home(self, card_model: CardModel) -> None:
        self._pool.release_home(card_model.name)
        self._arena.discard(card_model.weights.home)

    async def _save(self, card_model: CardModel) -> bool:
        """False where host memory can't hold the copy: the weights are read again on waking, then."""
        try:
            await run_aside(card_model.weights.save)
        except (MemoryError, RuntimeError) as error:
            logger.warning("%s: its weights can't be kept in host memory: %s", card_model.name, error)
            return False
        return True

    def _move_out(self, card_model: CardModel) -> None:
        card_model.hooks.move_out()
        if card_model.name in self._pool.engines:
            self._pool.set_share(card_model.name, 0, card_model.ceiling_pages)

    # --- back on the card ------------------------------------------------------------

    async def bring(self, card_model: CardModel) -> None:
        """There is room. Raises `EngineError`: then nothing of the model stays on the card but its account,
        its requests included; or, where it can't be cleared away, it has failed."""
        try:
            await self._bring(card_model)
        except EngineError:
            raise
        except Exception as error:
            logger.exception("%s can't wake up", card_model.name)
            raise BrokenModelError(f"The model `{card_model.name}` can't be woken up: {error}") from error

    async def _bring(self, card_model: CardModel) -> None:
        moment = await self._claim(card_model)
        try:
            await self._come_back(card_model, moment)
            if card_model.gate.refusal is not None:
                raise card_model.gate.refusal
        except BaseException as error:
            await self._give_up(card_model, error)
            raise

    def load_at_start(self, card_model: CardModel) -> None:
        """The same before the card's loop runs. Blocks while the weights load."""
        if not self._pool.claim_home(card_model.name, card_model.weights.home):
            raise RuntimeError(f"{card_model.name}: pages {card_model.weights.home} of its home are taken")
        card_model.weights.load(card_model.on_load)
        self.allot(card_model, card_model.floor_pages, card_model.ceiling_pages)
        assert card_model.weights.model is not None
        device = self._arena.device  # Triton launches on the thread's current one; a loop's has set its own
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            for _ in card_model.hooks.move_in(card_model.weights.model):
                pass

    async def _claim(self, card_model: CardModel) -> CardMoment:
        """The home's pages, whoever has them now; and when the card is done with what it had in them. Raises
        `ModelUnavailableError` where they can't be had."""

        def claim() -> CardMoment | None:
            claimed = self._pool.claim_home(card_model.name, card_model.weights.home)
            return CardMoment.now(self._arena.device) if claimed else None

        # A page may be held by a step in flight, and again by the next one: this waits for a gap between such
        # steps, of which there is no news.
        for _ in range(CLAIM_TRIES):
            if (moment := await run_on(self._loop, claim)) is not None:
                return moment
            await asyncio.sleep(CLAIM_POLL_SECONDS)
        raise ModelUnavailableError(f"The model `{card_model.name}` gets no memory now; try again later.")

    async def _come_back(self, card_model: CardModel, moment: CardMoment) -> None:
        """To a home that was claimed at `moment`."""
        weights = card_model.weights
        if weights.host_bytes or weights.model is not None:
            await run_aside(partial(weights.restore, moment))
        else:
            await run_aside(partial(weights.load, card_model.on_load))
        floor_pages, ceiling_pages = card_model.floor_pages, card_model.ceiling_pages
        await run_on(self._loop, partial(self.allot, card_model, floor_pages, ceiling_pages))
        await self.move_in(card_model)

    async def move_in(self, card_model: CardModel) -> None:
        """The weights are at home. Other engines' steps run between two of the first ones of this."""
        assert card_model.weights.model is not None
        first_steps = card_model.hooks.move_in(card_model.weights.model)
        try:
            while await run_on(self._loop, partial(_step, first_steps)):
                pass
        except BaseException:
            await run_on(self._loop, first_steps.close)
            raise

    async def _give_up(self, card_model: CardModel, error: BaseException) -> None:
        try:
            await run_on(self._loop, partial(self._take_back, card_model, error))
        except Exception as worse:
            logger.exception("%s can't be taken off its card in good order", card_model.name)
            if card_model.gate.refusal is None:
                card_model.gate.fail(out_of_service(card_model.name, worse))

    async def wipe_out(self, card_model: CardModel, error: BaseException) -> None:
        """Nothing of a model stays on the card, in whatever order or disorder it was left."""
        await run_on(self._loop, partial(self._wipe_out, card_model, error))
        await self.drop(card_model)

    def _take_back(self, card_model: CardModel, error: BaseException) -> None:
        self._loop.deliver(card_model.engine.give_up(error))
        card_model.hooks.forget()
        self._move_out(card_model)
        self.release_home(card_model)
        card_model.weights.drop()

    def _wipe_out(self, card_model: CardModel, error: BaseException) -> None:
        """Each on its own: what one of them can't do keeps nobody else out of the card's memory."""
        if card_model.reclaimer is None or card_model.name in self._pool.engines:
            _in_any_case(card_model, lambda: self._loop.deliver(card_model.engine.give_up(error)))
        _in_any_case(card_model, partial(self.part, card_model))
        if self._pool.has_home(card_model.name):
            _in_any_case(card_model, partial(self.release_home, card_model))


def _step(steps: Iterator[None]) -> bool:
    """Whether there was one more."""
    return next(steps, steps) is not steps


def _in_any_case(card_model: CardModel, call: Callable[[], None]) -> None:
    try:
        call()
    except Exception as error:
        if classify(error) == "fatal":
            raise
        logger.exception("%s doesn't leave in good order", card_model.name)
