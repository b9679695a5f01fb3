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
from onecard.engines.lifecycle.attempt import AbandonedError, Attempt, Check
from onecard.engines.lifecycle.gate import out_of_service
from onecard.engines.lifecycle.occupancy import Occupancy
from onecard.engines.lifecycle.passage import Passage
from onecard.engines.lifecycle.residence import Residence
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


class Keeper:
    """All calls run on the event loop."""

    def __init__(self, card: str, arena: DeviceArena, pool: PagePool, loop: DeviceLoop):
        self.card = card
        self.pool, self.loop = pool, loop
        self.passage = Passage(arena, pool, loop)
        self.residences: dict[str, Residence] = {}
        self.moving = asyncio.Lock()
        """Held while a model is on its way in or out."""
        self._turn = asyncio.Lock()
        """Held while others are put to sleep for a model; taken before `moving`, never after."""
        self._turn_of: Residence | None = None
        self._attempts: dict[Residence, Attempt] = {}
        """To wake a model: those under way, or waiting for their turn."""
        self._departures: dict[Residence, Attempt] = {}
        """To put one to sleep: its gate is closed, and its requests finish."""
        self.occupancy = Occupancy(self.residences, self._departures, pool)
        self._reasons: dict[Residence, str] = {}
        """What each of those that want room waits for."""

    @property
    def is_quiet(self) -> bool:
        """Nobody waits for a model, and none is on its way in or out."""
        waiting = any(residence.gate.num_waiting for residence in self.residences.values())
        return not (waiting or self._attempts or self._departures or self.moving.locked())

    def is_settled(self, residence: Residence) -> bool:
        """Nobody wakes the model or puts it to sleep: its state holds while `moving` is held."""
        return residence not in self._attempts and residence not in self._departures

    def add(self, residence: Residence) -> None:
        self.residences[residence.name] = residence
        residence.gate.wake = partial(self._wake_together, residence)
        residence.gate.waits_for = partial(self._reason, residence)

    def remove(self, name: str) -> None:
        del self.residences[name]

    # --- what an operator, a request or the clock asks for -------------------------------------------------

    async def sleep(self, name: str, level: SleepLevel) -> None:
        """Returns when the model sleeps: its requests, and a wake that is under way, come first. Raises
        `InvalidRequestError` for a pinned one."""
        residence = self.residences[name]
        if residence.policy.pinned:
            raise InvalidRequestError(
                f"The model `{name}` is pinned in the registry: it never sleeps.", param="model"
            )
        while residence in self._attempts and residence not in self._departures:
            await asyncio.sleep(POLL_SECONDS)
        if residence.awake or residence in self._departures:
            await self._departure(residence, level).join()
        if level == 2:
            await self._drop_copy(residence)

    async def wake(self, name: str) -> None:
        """Raises `ModelUnavailableError` where no room can be made, `BrokenModelError` where the model itself
        is at fault.

        All who want the model wait for one attempt, which goes on when some of them leave. When all have left
        before there is room for it, nobody else is put to sleep any more, and it sleeps on.
        """
        await self._wake_together(self.residences[name])

    async def sleep_idle(self) -> None:
        """Put to sleep whoever nobody has used for its `ttl`."""
        now = time.monotonic()
        for residence in list(self.residences.values()):
            if residence.awake and residence.busy:
                residence.gate.touch()
            ttl = residence.policy.ttl
            if ttl is None or not residence.awake or residence.policy.pinned:
                continue
            if self.residences.get(residence.name) is not residence:
                continue
            if now - residence.gate.last_used >= ttl and not self.moving.locked():
                logger.info("%s has been idle for %.0f s: it goes to sleep", residence.name, ttl)
                await self.sleep(residence.name, residence.policy.sleep_level)

    async def bury(self, residence: Residence, error: BaseException) -> None:
        """While `moving` is held. Nothing of a model that has failed stays on the card, whatever state it was
        in."""
        if self.residences.get(residence.name) is residence:
            await self.passage.wipe_out(residence, error)
            self.remove(residence.name)

    # --- falling asleep ------------------------------------------------------------

    def _departure(self, residence: Residence, level: SleepLevel) -> Attempt:
        """Of a model that is awake or on its way out: then it sleeps as deep as was asked first."""
        departure = self._departures.get(residence)
        if departure is None:
            residence.gate.turn(_resting(level))  # from here on new requests wait
            departure = Attempt(partial(self._depart, residence, level), f"sleep {residence.name}")
            self._departures[residence] = departure
        return departure

    async def _depart(self, residence: Residence, level: SleepLevel, check: Check) -> None:
        """Until the model really leaves `check` may end this: then it serves on."""
        try:
            await self._until_idle(residence, check)
            async with self.moving:
                check()
                if residence.gate.refusal is None:  # else it has failed: somebody buries it
                    await self._leave(residence, level)
        except AbandonedError:
            logger.info("nobody wants %s to sleep any more: it serves on", residence.name)
        finally:
            del self._departures[residence]
            if self.pool.has_home(residence.name):
                residence.gate.turn("ready")

    async def _until_idle(self, residence: Residence, check: Check) -> None:
        """Requests that were let in before the gate closed finish first. The card's loop has the last word:
        by then it has been given all of them, and none is between two queues."""
        has_requests = residence.tenancy.has_requests
        while has_requests() or await self.on_loop(has_requests):
            check()
            await asyncio.sleep(POLL_SECONDS)

    async def _leave(self, residence: Residence, level: SleepLevel) -> None:
        began = time.perf_counter()
        try:
            reached = await self.passage.leave(residence, level)
        except Exception as error:
            logger.exception("%s can't leave its card in good order", residence.name)
            await self._break(residence, error)
            return
        residence.gate.turn(_resting(reached))
        seconds = time.perf_counter() - began
        logger.info("%s sleeps (level %d) after %.2f s", residence.name, reached, seconds)

    async def _drop_copy(self, residence: Residence) -> None:
        async with self.moving:
            if residence.gate.state == "asleep" and self.is_settled(residence):
                await self.passage.drop(residence)
                residence.gate.turn("unloaded")

    # --- waking up -----------------------------------------------------------------

    async def _wake_together(self, residence: Residence) -> None:
        attempt = self._attempts.get(residence)
        if attempt is None:
            attempt = Attempt(partial(self._wake_in_turn, residence), f"wake {residence.name}")
            self._attempts[residence] = attempt
        await attempt.join()

    async def _wake_in_turn(self, residence: Residence, check: Check) -> None:
        try:
            await self._departed(residence, check)
            async with self.moving:  # a reload may be bringing it
                check()
                _refuse_broken(residence)
                if residence.awake:
                    return
                residence.gate.turn("waking")
            await self._wake(residence, check)
        except AbandonedError:
            logger.info("nobody waits for %s any more: it sleeps on", residence.name)
        except EngineError:
            raise
        except Exception as error:
            logger.exception("%s can't wake up", residence.name)
            raise BrokenModelError(f"The model `{residence.name}` can't be woken up: {error}") from error
        finally:
            self._reasons.pop(residence, None)
            del self._attempts[residence]  # whoever comes from here on needs another one

    async def _departed(self, residence: Residence, check: Check) -> None:
        """A model that is on its way out leaves first, or doesn't after all."""
        while residence in self._departures:
            check()
            self._reasons[residence] = _requests_of(residence.name)
            await asyncio.sleep(POLL_SECONDS)

    async def _wake(self, residence: Residence, check: Check) -> None:
        began = time.perf_counter()
        try:
            async with self.room_for(residence, check):
                await self._come_in(residence)
        except BaseException:
            residence.gate.turn("unloaded" if residence.weights.model is None else "asleep")
            raise
        residence.gate.touch()
        logger.info("%s is awake after %.2f s", residence.name, time.perf_counter() - began)

    async def _come_in(self, residence: Residence) -> None:
        _refuse_broken(residence)
        moment = await self.passage.claim(residence)
        self._reasons[residence] = f"the weights of `{residence.name}` are still on their way"
        try:
            await self.passage.come_back(residence, moment)
            _refuse_broken(residence)
        except BaseException as error:
            await self._clear(residence, error)
            raise
        residence.gate.turn("ready")

    async def _clear(self, residence: Residence, error: BaseException) -> None:
        """It couldn't be brought back: nothing of it stays. Where that fails, so has the model."""
        try:
            await self.passage.give_up(residence, error)
        except Exception as worse:
            logger.exception("%s can't be taken off its card in good order", residence.name)
            await self._break(residence, worse)

    async def _break(self, residence: Residence, error: Exception) -> None:
        if residence.gate.refusal is None:
            residence.gate.fail(out_of_service(residence.name, error))
        await self.bury(residence, error)

    # --- room ----------------------------------------------------------------------

    @asynccontextmanager
    async def room_for(self, residence: Residence, check: Check = _go_on) -> AsyncIterator[None]:
        """Holds `moving` once there is room for the model, and whoever was in its way sleeps. `check` may end
        it before. Raises `ModelUnavailableError` where those that never sleep are in its way."""
        async with self.moving:
            check()
            if self.occupancy.may_pass(residence, self._turn_of):
                yield
                return
        async with self._turn:
            self._turn_of = residence
            try:
                deadline = time.monotonic() + PATIENCE_SECONDS
                while True:
                    await self._make_room(residence, check, deadline)
                    async with self.moving:
                        check()
                        if not self.occupancy.sleepers_for(residence):
                            yield
                            return
            finally:
                self._turn_of = None

    async def _make_room(self, residence: Residence, check: Check, deadline: float) -> None:
        """Put others to sleep; those that are busy get some time to become idle by themselves. `check` may
        end it: whoever hasn't left yet then stays."""
        with ExitStack() as wanted:
            asked: set[Attempt] = set()
            while sleepers := self.occupancy.sleepers_for(residence):
                check()
                late = time.monotonic() >= deadline
                for sleeper in sleepers:
                    if not (sleeper in self._departures or (sleeper.awake and (late or not sleeper.busy))):
                        continue  # it has time yet, is on its way in, or has failed and is being buried
                    departure = self._departure(sleeper, sleeper.policy.sleep_level)
                    if departure not in asked:
                        logger.info("%s makes room for %s", sleeper.name, residence.name)
                        wanted.enter_context(departure.wanted())
                        asked.add(departure)
                if busy := [sleeper.name for sleeper in sleepers if sleeper.tenancy.has_requests()]:
                    self._reasons[residence] = _requests_of(busy[0])
                await asyncio.sleep(POLL_SECONDS)

    # --- meanwhile -----------------------------------------------------------------

    def _reason(self, residence: Residence) -> str:
        """Why the model isn't awake yet: what it waits for itself, or whose turn it is, or anybody."""
        for waiting in (residence, self._turn_of, *self._reasons):
            if waiting in self._reasons:
                return self._reasons[waiting]
        return "models of its card are still changing places"

    async def on_loop(self, call: Callable[[], T]) -> T:
        return await run_on(self.loop, call)


def _refuse_broken(residence: Residence) -> None:
    if residence.gate.refusal is not None:
        raise residence.gate.refusal


def _resting(level: SleepLevel) -> ModelState:
    return "asleep" if level == 1 else "unloaded"


def _requests_of(name: str) -> str:
    return f"`{name}` is still busy with requests it has accepted"
