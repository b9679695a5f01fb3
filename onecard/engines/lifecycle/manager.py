"""Carries out, from the event loop, what is decided of one card's models (`decide`).

    what happens -> events -> decide -> effects -> gates close and open, weights move, whoever waits goes on

Weights move one model at a time; requests finish beside that, and keep nobody waiting but who wants their
model's room.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

from onecard.engines.api import EngineError, InvalidRequestError, ModelUnavailableError, SleepLevel
from onecard.engines.lifecycle.card_model import CardModel
from onecard.engines.lifecycle.decide import decide, reason
from onecard.engines.lifecycle.quiet import QuietWatch
from onecard.engines.lifecycle.table import Ask, Effect, Event, Table
from onecard.engines.lifecycle.weight_mover import WeightMover
from onecard.engines.memory.arena import DeviceArena
from onecard.engines.memory.page_pool import PagePool
from onecard.engines.runtime.device_loop import DeviceLoop
from onecard.engines.runtime.gate import Gate, out_of_service
from onecard.engines.runtime.inbox import run_on

logger = logging.getLogger(__name__)
T = TypeVar("T")

PATIENCE_SECONDS = 10.0
"""How long a model that must make room may go on taking requests before it is made to finish."""


class LifecycleManager:
    """All calls run on the event loop. Implements `Waker`."""

    def __init__(self, card: str, arena: DeviceArena, pool: PagePool, loop: DeviceLoop):
        self.card, self.pool, self.loop = card, pool, loop
        self.mover = WeightMover(arena, pool, loop)
        self.card_models: dict[str, CardModel] = {}
        self._table = Table(pool.num_pages)
        self._answers: dict[Ask, asyncio.Future[None]] = {}
        """Given to whoever waits for an ask: when it ends or, where it is for the card, when it begins."""
        self._quiet = QuietWatch(loop, self._look_again)
        self._tasks: set[asyncio.Task[None]] = set()
        self._come_or_gone = asyncio.Event()
        """Set, and replaced by the next one, when a model joins the card or leaves it."""
        self._news = asyncio.Event()
        """Set whenever something may have become quiet."""

    @property
    def is_quiet(self) -> bool:
        """Nobody waits for a model, and none is on its way in or out."""
        waiting = any(card_model.gate.num_waiting for card_model in self.card_models.values())
        return self._table.at_rest and not waiting

    async def until(self, holds: Callable[[], bool]) -> None:
        """Returns once `holds()`, which is asked again whenever something changes here or at a gate."""
        while not holds():
            self._news.clear()
            await self._news.wait()

    # --- models that come and go ----------------------------------------------------------------------------

    def add(self, card_model: CardModel) -> None:
        """The model is on its card; whoever waits at its gate may wake it."""
        self.card_models[card_model.name] = card_model
        self._tell_of_change()

    def remove(self, card_model: CardModel) -> None:
        """It has left, or has failed before it came."""
        if self.card_models.get(card_model.name) is card_model:
            del self.card_models[card_model.name]
        self._tell_of_change()

    def engine_failed(self, name: str, error: BaseException) -> None:
        """Its loop has taken it off and failed its requests: the others go on, in the memory that it had."""
        card_model = self.card_models.get(name)
        if card_model is not None:
            card_model.gate.fail(out_of_service(name, error))
            self._decide(Event("changed"))
            self._start(self.discard(card_model, error), f"discard {name}")

    async def discard(self, card_model: CardModel, error: BaseException) -> None:
        """Nothing of a model that has failed stays on the card, whatever state it was in."""
        async with self.still():
            await self.clear_away(card_model, error)

    async def clear_away(self, card_model: CardModel, error: BaseException) -> None:
        """The same, for whoever has the card."""
        if self.card_models.get(card_model.name) is card_model:
            await self.mover.wipe_out(card_model, error)
        self.remove(card_model)

    def _tell_of_change(self) -> None:
        self._come_or_gone.set()
        self._come_or_gone = asyncio.Event()
        self._decide(Event("changed"))

    # --- what an operator, a request, a reload or the clock asks for ----------------------------------------

    async def sleep(self, name: str, level: SleepLevel) -> None:
        """Returns when the model sleeps: its requests, and a wake that is under way, come first. Raises
        `InvalidRequestError` for a pinned one."""
        card_model = self.card_models[name]
        if card_model.policy.pinned:
            raise InvalidRequestError(
                f"The model `{name}` is pinned in the registry: it never sleeps.", param="model"
            )
        async with self._asking(Ask("sleep", name, level)):
            pass
        if level == 2:
            async with self.still():
                if card_model.gate.state == "asleep" and self._table.is_settled(name):
                    await self.mover.drop(card_model)
                    card_model.gate.turn("unloaded")

    async def wake(self, name: str) -> None:
        """Raises `ModelUnavailableError` where no room can be made, `BrokenModelError` where the model itself
        is at fault.

        All who want the model wait for one ask, which goes on when some of them leave. When all have left
        before there is room for it, nobody else is put to sleep any more, and it sleeps on.
        """
        gate = self.card_models[name].gate
        async with self._asking(self._table.wake_of(name) or Ask("wake", name)):
            if gate.refusal is not None:
                raise gate.refusal

    async def wake_up(self, gate: Gate) -> None:
        if self._find(gate) is None:  # a reload is bringing it
            await self._come_or_gone.wait()
        else:
            await self.wake(gate.name)

    def reason(self, gate: Gate) -> str:
        if self._find(gate) is None:
            return "a change of the registry is still being carried out"
        self._look()
        return reason(self._table, gate.name)

    def arrived(self, gate: Gate) -> None:
        """It is looked at once the request has been posted, which is at once."""
        self._news.set()
        card_model = self._find(gate)
        if card_model is not None and not self._table.at_rest:
            asyncio.get_running_loop().call_soon(self._look_again, card_model)

    async def sleep_idle(self) -> None:
        """Put to sleep whoever nobody has used for its `ttl`."""
        now = time.monotonic()
        for card_model in [card_model for card_model in self.card_models.values() if card_model.awake]:
            gate, policy = card_model.gate, card_model.policy
            if card_model.busy:
                gate.touch()
            if policy.ttl is None or policy.pinned or not card_model.awake or self._find(gate) is None:
                continue
            if now - gate.last_used >= policy.ttl and self._table.moving is None:
                logger.info("%s has been idle for %.0f s: it goes to sleep", card_model.name, policy.ttl)
                await self.sleep(card_model.name, policy.sleep_level)

    def still(self) -> AbstractAsyncContextManager[None]:
        """No weights move, and what is known of the card's models holds."""
        return self._asking(Ask("hold"))

    def vacated(self, card_model: CardModel, gone: EngineError) -> AbstractAsyncContextManager[None]:
        """The same, once nobody is there any more; who comes from then on hears `gone`."""
        return self._asking(Ask("vacate", card_model.name, gone=gone))

    def room_for(self, card_model: CardModel, floor_pages: int) -> AbstractAsyncContextManager[None]:
        """The same, once there is room for such a floor, if the model is awake, and whoever was in its way
        sleeps. Raises `ModelUnavailableError` where those that never sleep are."""
        return self._asking(Ask("grow", card_model.name, floor_pages=floor_pages))

    async def on_loop(self, call: Callable[[], T]) -> T:
        return await run_on(self.loop, call)

    @asynccontextmanager
    async def _asking(self, ask: Ask) -> AsyncIterator[None]:
        """What is asked for holds inside. Raises what it is refused with."""
        loop = asyncio.get_running_loop()
        answer = self._answers.setdefault(ask, loop.create_future())
        self._decide(Event("asked", ask))
        try:
            await asyncio.shield(answer)
            yield
        finally:
            # Not before whoever has waited too long has found the reason.
            loop.call_soon(self._decide, Event("left", ask))

    # --- events in, effects out -----------------------------------------------------------------------------

    def _decide(self, event: Event) -> None:
        """What is done about it may bring more events, but none at once."""
        self._look()
        for effect in decide(self._table, event):
            self._carry_out(effect)
        self._news.set()

    def _look(self) -> None:
        self._table.models = {
            name: card_model.seen(self.pool, self._quiet.is_quiet(card_model))
            for name, card_model in self.card_models.items()
        }

    def _carry_out(self, effect: Effect) -> None:
        card_model, ask = self.card_models.get(effect.model), effect.ask
        match effect.do:
            case "begin" if ask:
                self._begin(ask, card_model)
            case "end" if ask:
                self._end(ask, card_model, effect.why)
            case "patience":
                loop = asyncio.get_running_loop()
                loop.call_later(PATIENCE_SECONDS, self._decide, Event("late", ask))
            case "close" if card_model:
                if ask and ask.kind != "sleep":
                    logger.info("%s makes room for %s", card_model.name, ask.model)
                card_model.rest(effect.level or card_model.policy.sleep_level)
            case "reopen" if card_model:
                logger.info("nobody wants %s to sleep any more: it serves on", card_model.name)
                card_model.gate.turn("ready")
            case "waking" if card_model:
                card_model.gate.turn("waking")
            case "watch" if card_model:
                self._quiet.watch(card_model)
            case "move_out" if card_model:
                leaving = self._leave(card_model, effect.level or card_model.policy.sleep_level)
                self._start(leaving, f"sleep {card_model.name}")

    def _begin(self, ask: Ask, card_model: CardModel | None) -> None:
        if ask.kind == "wake" and card_model is not None:
            self._start(self._come(ask, card_model), f"wake {ask.model}")
            return
        if ask.kind == "vacate" and card_model is not None:
            card_model.gate.refusal = card_model.gate.refusal or ask.gone
        self._answer(ask)

    def _end(self, ask: Ask, card_model: CardModel | None, why: str) -> None:
        """A wake that ends before its weights have moved: it is given up or refused, or needn't be."""
        error = ModelUnavailableError(f"The model `{ask.model}` can't wake up: {why}.") if why else None
        if ask.kind == "wake" and card_model is not None and card_model.gate.state == "waking":
            logger.info("%s sleeps on: %s", card_model.name, why or "nobody waits for it any more")
            card_model.rest()
        self._answer(ask, error)

    def _answer(self, ask: Ask, error: EngineError | None = None) -> None:
        """Whoever waits gets the error; if nobody does any more, it has been logged and is no news."""
        answer = self._answers.pop(ask)
        if error is None:
            answer.set_result(None)
        else:
            answer.set_exception(error)
            answer.exception()

    def _look_again(self, card_model: CardModel) -> None:
        """Nothing of the model ran a moment ago, or somebody was let in or has left."""
        if self._quiet.is_quiet(card_model):
            self._decide(Event("changed"))
        elif not self._table.at_rest:
            self._quiet.watch(card_model)

    def _find(self, gate: Gate) -> CardModel | None:
        """The gate's model; None while it isn't on its card."""
        card_model = self.card_models.get(gate.name)
        return card_model if card_model is not None and card_model.gate is gate else None

    def _start(self, move: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(move, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- weights on their way -------------------------------------------------------------------------------

    async def _leave(self, card_model: CardModel, level: SleepLevel) -> None:
        began = time.perf_counter()
        try:
            level = await self.mover.leave(card_model, level)
            card_model.rest(level)
            seconds = time.perf_counter() - began
            logger.info("%s sleeps (level %d) after %.2f s", card_model.name, level, seconds)
        except Exception as error:
            logger.exception("%s can't leave its card in good order", card_model.name)
            card_model.gate.fail(out_of_service(card_model.name, error))
        await self._moved(card_model)

    async def _come(self, ask: Ask, card_model: CardModel) -> None:
        began = time.perf_counter()
        failure: EngineError | None = None
        try:
            await self.mover.bring(card_model)
            card_model.gate.turn("ready")
            card_model.gate.touch()
            logger.info("%s is awake after %.2f s", card_model.name, time.perf_counter() - began)
        except EngineError as error:
            failure = error
            card_model.rest()
        try:
            await self._moved(card_model)
        finally:
            self._answer(ask, failure)

    async def _moved(self, card_model: CardModel) -> None:
        """One that has failed on its way has no place on the card any more."""
        try:
            if card_model.gate.refusal is not None:
                await self.clear_away(card_model, card_model.gate.refusal)
        finally:
            self._decide(Event("moved"))
