"""An operator who can't sit still: sleeps, wakes, new registries, and lulls to look at the books."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from random import Random

import yaml
from soaking import registries
from soaking.asking import Asker
from soaking.books import check_books
from soaking.load import Load
from soaking.memory import MemoryWatch
from soaking.server import Server
from soaking.tally import Tally

Order = Callable[[Random], Awaitable[None]]

PAUSE_SECONDS = (0.5, 4.0)
LULL_EVERY_SECONDS = 45.0
LULL_SECONDS = (0.5, 12.0)
"""Long enough for models to fall asleep by themselves, now and then."""


class Operator:
    def __init__(self, server: Server, asker: Asker, load: Load, tally: Tally, memory: MemoryWatch) -> None:
        self._server, self._asker, self._load = server, asker, load
        self._tally, self._memory = tally, memory
        self._variant = registries.first()
        self._writing = asyncio.Lock()
        self._hands = [asyncio.Lock() for _ in self._orders()]

    async def run(self, random: Random, until: float) -> None:
        """Several hands, so that orders overlap, and somebody who calls for lulls."""
        async with asyncio.TaskGroup() as group:
            for hand, orders in zip(self._hands, self._orders(), strict=True):
                group.create_task(self._give(hand, orders, Random(random.random()), until))
            group.create_task(self._lulls(Random(random.random()), until))

    def _orders(self) -> list[list[Order]]:
        """What each hand does."""
        models = [self._sleep, self._sleep, self._wake]
        return [models, models, [self._reload, self._reload, self._break]]

    async def _give(self, hand: asyncio.Lock, orders: list[Order], random: Random, until: float) -> None:
        while time.monotonic() < until:
            async with hand:
                await random.choice(orders)(random)
            await asyncio.sleep(min(random.uniform(*PAUSE_SECONDS), max(0.0, until - time.monotonic())))

    async def _lulls(self, random: Random, until: float) -> None:
        every = min(LULL_EVERY_SECONDS, (until - time.monotonic()) / 4)
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, random.uniform(0.5, 1.5) * every))
            await self._load.hush()
            await check_books(self._asker, self._tally)
            await asyncio.sleep(max(0.0, min(random.uniform(*LULL_SECONDS), until - time.monotonic())))
            await self._look_at_memory()
            self._load.resume()
            self._tally.counts["lulls"] += 1

    async def _look_at_memory(self) -> None:
        async with AsyncExitStack() as still:
            for hand in self._hands:
                await still.enter_async_context(hand)
            status, content = await self._asker.order("/sleep?level=2")
            if status == 200:
                self._memory.look_unloaded()
            elif status != 501:
                self._tally.problem(f"POST /sleep?level=2: {status} {content}")

    async def _sleep(self, random: Random) -> None:
        name, level = random.choice([*registries.CHATS, *registries.EMBEDDERS]), random.choice([1, 1, 2])
        paths = [f"/models/{name}/sleep?level={level}", f"/sleep?model={name}&level={level}"]
        await self._order(f"sleeps, level {level}", random.choice(paths))

    async def _wake(self, random: Random) -> None:
        name = random.choice([*registries.CHATS, *registries.EMBEDDERS])
        paths = [f"/models/{name}/wake_up", f"/models/{name}/load", f"/wake_up?model={name}"]
        await self._order("wakes", random.choice(paths))

    async def _order(self, what: str, path: str) -> None:
        began = time.monotonic()
        status, content = await self._asker.order(path)
        if status == 501:
            self._tally.counts["orders that aren't offered"] += 1
        elif status == 503:
            self._tally.counts[f"{what}: 503"] += 1
        elif status != 200:
            self._tally.problem(f"POST {path}: {status} {content}")
        else:
            self._tally.counts[what] += 1
            self._tally.latencies[what].append(time.monotonic() - began)

    async def _reload(self, random: Random) -> None:
        async with self._writing:
            wanted = registries.draw(random)
            self._load.names.narrow(wanted.chats, wanted.embedders)
            began = time.monotonic()
            status, content = await self._serve(yaml.safe_dump(wanted.content))
            if status == 200:
                self._tally.counts["reloads"] += 1
                self._tally.latencies["reloads"].append(time.monotonic() - began)
                self._variant = wanted
            elif status == 400 and registries.TOO_MUCH_PROMISED in str(content):
                # Who is awake keeps its promise. The server watches the file and may take it a little later,
                # when somebody has fallen asleep: it must not lie there.
                self._tally.counts["reloads refused for those awake"] += 1
                await self._serve(yaml.safe_dump(self._variant.content))
            elif status == 501:
                self._tally.counts["orders that aren't offered"] += 1
            else:
                self._tally.problem(f"a reload: {status} {content}: {registries.shown(wanted)}")
            self._load.names.widen(self._variant.chats, self._variant.embedders)

    async def _break(self, random: Random) -> None:
        """A file that is wrong changes nothing; afterwards the right one lies there again."""
        async with self._writing:
            content = random.choice([*registries.BROKEN, yaml.safe_dump(registries.too_large())])
            status, answer = await self._serve(content)
            if status == 400:
                self._tally.counts["broken registries refused"] += 1
            elif status != 501:
                self._tally.problem(f"a broken registry was answered {status} {answer}: {content}")
            await self._serve(yaml.safe_dump(self._variant.content))

    async def _serve(self, registry: str) -> tuple[int, object]:
        self._server.write(registry)
        return await self._asker.order("/-/reload")
