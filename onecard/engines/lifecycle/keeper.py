"""Puts the models of one card to sleep and wakes them, from the event loop."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from onecard.engines.api import (
    EngineError,
    InvalidRequestError,
    ModelState,
    ModelUnavailableError,
    SleepLevel,
)
from onecard.engines.lifecycle.home_weights import CardMoment
from onecard.engines.lifecycle.residence import Residence
from onecard.engines.lifecycle.room import NoRoomError, Tenant, make_room
from onecard.engines.memory.arena import DeviceArena
from onecard.engines.memory.page_pool import PagePool
from onecard.engines.runtime.device_loop import DeviceLoop
from onecard.engines.runtime.heap import give_back_heap
from onecard.engines.runtime.worker import run_aside, run_on

logger = logging.getLogger(__name__)
T = TypeVar("T")

POLL_SECONDS = 0.01
CLAIM_TRIES = 100
PATIENCE_SECONDS = 10.0
"""How long a model that must make room may go on taking requests before it is made to finish."""


class BrokenModelError(ModelUnavailableError):
    """The model itself is at fault: its files, or what its first steps came to."""


class Keeper:
    """All calls run on the event loop; those for one card wait for each other."""

    def __init__(self, card: str, arena: DeviceArena, pool: PagePool, loop: DeviceLoop):
        self.card = card
        self.arena, self.pool, self.loop = arena, pool, loop
        self.residences: dict[str, Residence] = {}
        self.moving = asyncio.Lock()
        """Held while a model is on its way in or out."""
        self._waking: dict[Residence, asyncio.Task[None]] = {}

    @property
    def is_quiet(self) -> bool:
        """Nobody waits for a model, and none is on its way in or out."""
        waiting = any(residence.gate.num_waiting for residence in self.residences.values())
        return not waiting and not self.moving.locked()

    def add(self, residence: Residence) -> None:
        self.residences[residence.name] = residence
        residence.gate.wake = partial(self._wake_once, residence)

    def remove(self, name: str) -> None:
        del self.residences[name]

    # --- what an operator, a request or the clock asks for -------------------------------------------------

    async def sleep(self, name: str, level: SleepLevel) -> None:
        """Raises `InvalidRequestError` for a pinned model."""
        residence = self.residences[name]
        if residence.policy.pinned:
            raise InvalidRequestError(
                f"The model `{name}` is pinned in the registry: it never sleeps.", param="model"
            )
        async with self.moving:
            await self._sleep(residence, level)

    async def wake(self, name: str) -> None:
        """Raises `ModelUnavailableError` where no room can be made, `BrokenModelError` where the model itself
        is at fault.

        All who want the model wait for one attempt, which goes on when some of them leave.
        """
        await self._wake_once(self.residences[name])

    async def _wake_once(self, residence: Residence) -> None:
        task = self._waking.get(residence)
        if task is None:
            task = asyncio.create_task(self._wake_in_turn(residence), name=f"wake {residence.name}")
            self._waking[residence] = task
            task.add_done_callback(lambda _: self._waking.pop(residence, None))
            task.add_done_callback(_note_error)
        await asyncio.shield(task)

    async def _wake_in_turn(self, residence: Residence) -> None:
        async with self.moving:
            if residence.gate.refusal is not None:
                raise residence.gate.refusal
            if residence.awake:
                return
            try:
                await self._wake(residence)
            except EngineError:
                raise
            except Exception as error:
                logger.exception("%s can't wake up", residence.name)
                raise BrokenModelError(f"The model `{residence.name}` can't be woken up: {error}") from error

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

    # --- falling asleep ------------------------------------------------------------

    async def _sleep(self, residence: Residence, level: SleepLevel) -> None:
        if residence.gate.state == "asleep" and level == 2:
            await self.drop(residence)
            residence.gate.state = "unloaded"
        if not residence.awake:
            return
        began = time.perf_counter()
        residence.gate.state = _resting(level)  # from here on new requests wait
        await self._until_idle(residence)
        await self.on_loop(partial(self._move_out, residence))
        if level == 1 and not await self._save(residence):
            level = 2
            residence.gate.state = _resting(level)
        if level == 2:
            await self.drop(residence)
        await self.on_loop(partial(self.release_home, residence))
        seconds = time.perf_counter() - began
        logger.info("%s sleeps (level %d) after %.2f s", residence.name, level, seconds)

    async def _save(self, residence: Residence) -> bool:
        """False where host memory can't hold the copy: the weights are read again on waking, then."""
        try:
            await run_aside(residence.weights.save)
        except (MemoryError, RuntimeError) as error:
            logger.warning("%s: its weights can't be kept in host memory: %s", residence.name, error)
            return False
        return True

    async def drop(self, residence: Residence) -> None:
        """Nothing of the weights stays, at home or elsewhere."""
        residence.weights.drop()
        await self.on_loop(residence.tenancy.forget)
        await run_aside(give_back_heap)

    def _move_out(self, residence: Residence) -> None:
        residence.tenancy.move_out()
        if residence.name in self.pool.engines:
            self.pool.set_share(residence.name, 0, residence.ceiling_pages)

    def release_home(self, residence: Residence) -> None:
        self.pool.release_home(residence.name)
        self.arena.discard(residence.weights.home)

    async def _until_idle(self, residence: Residence) -> None:
        """Requests that were let in before the gate closed finish first."""
        await self.on_loop(lambda: None)
        while residence.tenancy.has_requests():
            await asyncio.sleep(POLL_SECONDS)

    # --- waking up -----------------------------------------------------------------

    async def _wake(self, residence: Residence) -> None:
        before, began = residence.gate.state, time.perf_counter()
        residence.gate.state = "waking"
        try:
            await self.make_room(residence)
            moment = await self._claim(residence)
        except BaseException:
            residence.gate.state = before
            raise
        try:
            await self._bring_back(residence, moment)
        except BaseException as error:
            await self.on_loop(partial(self._give_up, residence, error))
            residence.gate.state = "unloaded"
            raise
        residence.gate.state = "ready"
        residence.gate.touch()
        logger.info("%s is awake after %.2f s", residence.name, time.perf_counter() - began)

    async def _bring_back(self, residence: Residence, moment: CardMoment) -> None:
        weights = residence.weights
        if weights.host_bytes or weights.model is not None:
            await run_aside(partial(weights.restore, moment))
        else:
            await run_aside(partial(weights.load, residence.on_load))
        assert weights.model is not None
        await self.on_loop(partial(self.set_share, residence))
        await self.on_loop(partial(residence.tenancy.move_in, weights.model))

    def _give_up(self, residence: Residence, error: BaseException) -> None:
        """Waking up has failed halfway: nothing of the model stays."""
        self.loop.deliver(residence.engine.give_up(error))
        residence.tenancy.forget()
        self._move_out(residence)
        self.release_home(residence)
        residence.weights.drop()

    def set_share(self, residence: Residence) -> None:
        if residence.name in self.pool.engines:
            self.pool.set_share(residence.name, residence.floor_pages, residence.ceiling_pages)

    async def make_room(self, residence: Residence) -> None:
        """Put others to sleep; those that are busy get some time to become idle by themselves."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                room = make_room(self.tenants(), residence.name, self.pool.num_pages)
            except NoRoomError as error:
                raise ModelUnavailableError(
                    f"The model `{residence.name}` can't wake up: {error}."
                ) from error
            if not room.sleepers:
                return
            ready = [name for name in room.sleepers if name not in room.busy]
            for name in ready if time.monotonic() < deadline else room.sleepers:
                sleeper = self.residences[name]
                logger.info("%s makes room for %s", name, residence.name)
                await self._sleep(sleeper, sleeper.policy.sleep_level)
            if room.busy:
                await asyncio.sleep(POLL_SECONDS)

    async def _claim(self, residence: Residence) -> CardMoment:
        """The home's pages, whoever has them now; and when the card is done with what it had in them."""

        def claim() -> CardMoment | None:
            if not self.pool.claim_home(residence.name, residence.weights.home):
                return None
            return CardMoment.now(self.arena.device)

        for _ in range(CLAIM_TRIES):
            moment = await self.on_loop(claim)
            if moment is not None:
                return moment
            await asyncio.sleep(POLL_SECONDS)
        raise ModelUnavailableError(f"The model `{residence.name}` gets no memory now; try again later.")

    def tenants(self) -> Sequence[Tenant]:
        return [
            Tenant(
                residence.name,
                residence.weights.home,
                residence.floor_pages,
                residence.awake,
                residence.policy.pinned,
                not residence.busy,
                residence.gate.last_used,
            )
            for residence in self.residences.values()
        ]

    async def on_loop(self, call: Callable[[], T]) -> T:
        return await run_on(self.loop, call)


def _note_error(task: "asyncio.Task[None]") -> None:
    """Whoever waits gets the error; if nobody does any more, it has been logged and is no news."""
    if not task.cancelled():
        task.exception()


def _resting(level: SleepLevel) -> ModelState:
    return "asleep" if level == 1 else "unloaded"
