"""Decides which models of one card sleep and which are awake, from the event loop.

    sleep:  close the gate -> requests finish                   -> `moving`: leave
    wake:   its turn, where others must sleep for it first      -> `moving`: claim the home, come back

Only a model that is really on its way in or out holds `moving`. Requests finish beside that, and keep nobody
waiting but who wants their model's room.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import TypeVar

from onecard.engines.api import (
    EngineError,
    InvalidRequestError,
    ModelState,
    ModelUnavailableError,
    SleepLevel,
)
from onecard.engines.lifecycle.card_model import CardModel
from onecard.engines.lifecycle.gate import out_of_service
from onecard.engines.lifecycle.occupancy import Occupancy
from onecard.engines.lifecycle.shared_task import AbandonedError, Check, SharedTask
from onecard.engines.lifecycle.weight_mover import WeightMover
from onecard.engines.memory.arena import DeviceArena
from onecard.engines.memory.page_pool import PagePool
from onecard.engines.runtime.device_loop import DeviceLoop
from onecard.engines.runtime.worker import run_on

logger = logging.getLogger(__name__)
T = TypeVar("T")

POLL_SECONDS = 0.01
PATIENCE_SECONDS = 10.0
"""How long a model that must make room may go on taking requests before it is made to finish."""


class BrokenModelError(ModelUnavailableError):
    """The model itself is at fault: its files, or what its first steps came to."""


def _go_on() -> None:
    """The `Check` of what is carried through whoever waits for it."""


class LifecycleManager:
    """All calls run on the event loop."""

    def __init__(self, card: str, arena: DeviceArena, pool: PagePool, loop: DeviceLoop):
        self.card = card
        self.pool, self.loop = pool, loop
        self.mover = WeightMover(arena, pool, loop)
        self.card_models: dict[str, CardModel] = {}
        self.moving = asyncio.Lock()
        """Held while a model is on its way in or out."""
        self._turn = asyncio.Lock()
        """Held while others are put to sleep for a model; taken before `moving`, never after."""
        self._turn_of: CardModel | None = None
        self._attempts: dict[CardModel, SharedTask] = {}
        """To wake a model: those under way, or waiting for their turn."""
        self._departures: dict[CardModel, SharedTask] = {}
        """To put one to sleep: its gate is closed, and its requests finish."""
        self.occupancy = Occupancy(self.card_models, self._departures, pool)
        self._reasons: dict[CardModel, str] = {}
        """What each of those that want room waits for."""

    @property
    def is_quiet(self) -> bool:
        """Nobody waits for a model, and none is on its way in or out."""
        waiting = any(card_model.gate.num_waiting for card_model in self.card_models.values())
        return not (waiting or self._attempts or self._departures or self.moving.locked())

    def is_settled(self, card_model: CardModel) -> bool:
        """Nobody wakes the model or puts it to sleep: its state holds while `moving` is held."""
        return card_model not in self._attempts and card_model not in self._departures

    def add(self, card_model: CardModel) -> None:
        self.card_models[card_model.name] = card_model
        card_model.gate.wake = partial(self._wake_together, card_model)
        card_model.gate.waits_for = partial(self._reason, card_model)

    def remove(self, name: str) -> None:
        del self.card_models[name]

    # --- what an operator, a request or the clock asks for -------------------------------------------------

    async def sleep(self, name: str, level: SleepLevel) -> None:
        """Returns when the model sleeps: its requests, and a wake that is under way, come first. Raises
        `InvalidRequestError` for a pinned one."""
        card_model = self.card_models[name]
        if card_model.policy.pinned:
            raise InvalidRequestError(
                f"The model `{name}` is pinned in the registry: it never sleeps.", param="model"
            )
        while card_model in self._attempts and card_model not in self._departures:
            await asyncio.sleep(POLL_SECONDS)
        if card_model.awake or card_model in self._departures:
            await self._departure(card_model, level).join()
        if level == 2:
            await self._drop_copy(card_model)

    async def wake(self, name: str) -> None:
        """Raises `ModelUnavailableError` where no room can be made, `BrokenModelError` where the model itself
        is at fault.

        All who want the model wait for one attempt, which goes on when some of them leave. When all have left
        before there is room for it, nobody else is put to sleep any more, and it sleeps on.
        """
        await self._wake_together(self.card_models[name])

    async def sleep_idle(self) -> None:
        """Put to sleep whoever nobody has used for its `ttl`."""
        now = time.monotonic()
        for card_model in list(self.card_models.values()):
            if card_model.awake and card_model.busy:
                card_model.gate.touch()
            ttl = card_model.policy.ttl
            if ttl is None or not card_model.awake or card_model.policy.pinned:
                continue
            if self.card_models.get(card_model.name) is not card_model:
                continue
            if now - card_model.gate.last_used >= ttl and not self.moving.locked():
                logger.info("%s has been idle for %.0f s: it goes to sleep", card_model.name, ttl)
                await self.sleep(card_model.name, card_model.policy.sleep_level)

    async def discard(self, card_model: CardModel, error: BaseException) -> None:
        """While `moving` is held. Nothing of a model that has failed stays on the card, whatever state it was
        in."""
        if self.card_models.get(card_model.name) is card_model:
            await self.mover.wipe_out(card_model, error)
            self.remove(card_model.name)

    # --- falling asleep ------------------------------------------------------------

    def _departure(self, card_model: CardModel, level: SleepLevel) -> SharedTask:
        """Of a model that is awake or on its way out: then it sleeps as deep as was asked first."""
        departure = self._departures.get(card_model)
        if departure is None:
            card_model.gate.turn(_resting(level))  # from here on new requests wait
            departure = SharedTask(partial(self._depart, card_model, level), f"sleep {card_model.name}")
            self._departures[card_model] = departure
        return departure

    async def _depart(self, card_model: CardModel, level: SleepLevel, check: Check) -> None:
        """Until the model really leaves `check` may end this: then it serves on."""
        try:
            await self._until_idle(card_model, check)
            async with self.moving:
                check()
                if card_model.gate.refusal is None:  # else it has failed: somebody discards it
                    await self._leave(card_model, level)
        except AbandonedError:
            logger.info("nobody wants %s to sleep any more: it serves on", card_model.name)
        finally:
            del self._departures[card_model]
            if self.pool.has_home(card_model.name):
                card_model.gate.turn("ready")

    async def _until_idle(self, card_model: CardModel, check: Check) -> None:
        """Requests that were let in before the gate closed finish first. The card's loop has the last word:
        by then it has been given all of them, and none is between two queues."""
        has_requests = card_model.hooks.has_requests
        while has_requests() or await self.on_loop(has_requests):
            check()
            await asyncio.sleep(POLL_SECONDS)

    async def _leave(self, card_model: CardModel, level: SleepLevel) -> None:
        began = time.perf_counter()
        try:
            reached = await self.mover.leave(card_model, level)
        except Exception as error:
            logger.exception("%s can't leave its card in good order", card_model.name)
            await self._break(card_model, error)
            return
        card_model.gate.turn(_resting(reached))
        seconds = time.perf_counter() - began
        logger.info("%s sleeps (level %d) after %.2f s", card_model.name, reached, seconds)

    async def _drop_copy(self, card_model: CardModel) -> None:
        async with self.moving:
            if card_model.gate.state == "asleep" and self.is_settled(card_model):
                await self.mover.drop(card_model)
                card_model.gate.turn("unloaded")

    # --- waking up -----------------------------------------------------------------

    async def _wake_together(self, card_model: CardModel) -> None:
        attempt = self._attempts.get(card_model)
        if attempt is None:
            attempt = SharedTask(partial(self._wake_in_turn, card_model), f"wake {card_model.name}")
            self._attempts[card_model] = attempt
        await attempt.join()

    async def _wake_in_turn(self, card_model: CardModel, check: Check) -> None:
        try:
            await self._departed(card_model, check)
            async with self.moving:  # a reload may be bringing it
                check()
                _refuse_broken(card_model)
                if card_model.awake:
                    return
                card_model.gate.turn("waking")
            await self._wake(card_model, check)
        except AbandonedError:
            logger.info("nobody waits for %s any more: it sleeps on", card_model.name)
        except EngineError:
            raise
        except Exception as error:
            logger.exception("%s can't wake up", card_model.name)
            raise BrokenModelError(f"The model `{card_model.name}` can't be woken up: {error}") from error
        finally:
            self._reasons.pop(card_model, None)
            del self._attempts[card_model]  # whoever comes from here on needs another one

    async def _departed(self, card_model: CardModel, check: Check) -> None:
        """A model that is on its way out leaves first, or doesn't after all."""
        while card_model in self._departures:
            check()
            self._reasons[card_model] = _requests_of(card_model.name)
            await asyncio.sleep(POLL_SECONDS)

    async def _wake(self, card_model: CardModel, check: Check) -> None:
        began = time.perf_counter()
        try:
            async with self.room_for(card_model, check):
                await self._come_in(card_model)
        except BaseException:
            card_model.gate.turn("unloaded" if card_model.weights.model is None else "asleep")
            raise
        card_model.gate.touch()
        logger.info("%s is awake after %.2f s", card_model.name, time.perf_counter() - began)

    async def _come_in(self, card_model: CardModel) -> None:
        _refuse_broken(card_model)
        moment = await self.mover.claim(card_model)
        self._reasons[card_model] = f"the weights of `{card_model.name}` are still on their way"
        try:
            await self.mover.come_back(card_model, moment)
            _refuse_broken(card_model)
        except BaseException as error:
            await self._clear(card_model, error)
            raise
        card_model.gate.turn("ready")

    async def _clear(self, card_model: CardModel, error: BaseException) -> None:
        """It couldn't be brought back: nothing of it stays. Where that fails, so has the model."""
        try:
            await self.mover.give_up(card_model, error)
        except Exception as worse:
            logger.exception("%s can't be taken off its card in good order", card_model.name)
            await self._break(card_model, worse)

    async def _break(self, card_model: CardModel, error: Exception) -> None:
        if card_model.gate.refusal is None:
            card_model.gate.fail(out_of_service(card_model.name, error))
        await self.discard(card_model, error)

    # --- room ----------------------------------------------------------------------

    @asynccontextmanager
    async def room_for(self, card_model: CardModel, check: Check = _go_on) -> AsyncIterator[None]:
        """Holds `moving` once there is room for the model, and whoever was in its way sleeps. `check` may end
        it before. Raises `ModelUnavailableError` where those that never sleep are in its way."""
        async with self.moving:
            check()
            if self.occupancy.may_pass(card_model, self._turn_of):
                yield
                return
        async with self._turn:
            self._turn_of = card_model
            try:
                deadline = time.monotonic() + PATIENCE_SECONDS
                while True:
                    await self._make_room(card_model, check, deadline)
                    async with self.moving:
                        check()
                        if not self.occupancy.sleepers_for(card_model):
                            yield
                            return
            finally:
                self._turn_of = None

    async def _make_room(self, card_model: CardModel, check: Check, deadline: float) -> None:
        """Put others to sleep; those that are busy get some time to become idle by themselves. `check` may
        end it: whoever hasn't left yet then stays."""
        with ExitStack() as wanted:
            asked: set[SharedTask] = set()
            while sleepers := self.occupancy.sleepers_for(card_model):
                check()
                late = time.monotonic() >= deadline
                for sleeper in sleepers:
                    if not (sleeper in self._departures or (sleeper.awake and (late or not sleeper.busy))):
                        continue  # it has time yet, is on its way in, or has failed and is being discarded
                    departure = self._departure(sleeper, sleeper.policy.sleep_level)
                    if departure not in asked:
                        logger.info("%s makes room for %s", sleeper.name, card_model.name)
                        wanted.enter_context(departure.wanted())
                        asked.add(departure)
                if busy := [sleeper.name for sleeper in sleepers if sleeper.hooks.has_requests()]:
                    self._reasons[card_model] = _requests_of(busy[0])
                await asyncio.sleep(POLL_SECONDS)

    # --- meanwhile -----------------------------------------------------------------

    def _reason(self, card_model: CardModel) -> str:
        """Why the model isn't awake yet: what it waits for itself, or whose turn it is, or anybody."""
        for waiting in (card_model, self._turn_of, *self._reasons):
            if waiting in self._reasons:
                return self._reasons[waiting]
        return "models of its card are still changing places"

    async def on_loop(self, call: Callable[[], T]) -> T:
        return await run_on(self.loop, call)


def _refuse_broken(card_model: CardModel) -> None:
    if card_model.gate.refusal is not None:
        raise card_model.gate.refusal


def _resting(level: SleepLevel) -> ModelState:
    return "asleep" if level == 1 else "unloaded"


def _requests_of(name: str) -> str:
    return f"`{name}` is still busy with requests it has accepted"
