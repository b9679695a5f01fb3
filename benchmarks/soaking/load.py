"""Clients that ask without pause, hang up, and compare every whole answer with the right one."""

import asyncio
import time
from dataclasses import dataclass, field
from random import Random

from soaking.answers import Known
from soaking.asking import Asker, HangUp, Outcome
from soaking.tally import Tally

HANG_UP_SHARE = 0.25
STREAM_SHARE = 0.5


@dataclass
class Names:
    """What may be asked for. A name that a reload takes away is no longer asked for beforehand, and one that
    it brings is asked for afterwards; whoever asked before may be told that there is no such model."""

    chats: frozenset[str]
    embedders: frozenset[str]
    retired: dict[str, float] = field(default_factory=dict)
    """Names that were served, and when (`time.monotonic`) they were last to be taken away."""

    def narrow(self, chats: frozenset[str], embedders: frozenset[str]) -> None:
        """What comes has only these; before the reload."""
        for name in (self.chats - chats) | (self.embedders - embedders):
            self.retired[name] = time.monotonic()
        self.chats, self.embedders = self.chats & chats, self.embedders & embedders

    def widen(self, chats: frozenset[str], embedders: frozenset[str]) -> None:
        """It has come."""
        self.chats, self.embedders = chats, embedders

    def may_be_unknown(self, name: str, asked: float) -> bool:
        return self.retired.get(name, -1.0) >= asked


class Load:
    """`clients` of these run `client` side by side; a lull keeps all of them from asking anew."""

    def __init__(self, asker: Asker, known: list[Known], names: Names, tally: Tally, clients: int) -> None:
        self.names = names
        self._asker, self._known, self._tally = asker, known, tally
        self._clients = clients
        self._open = asyncio.Event()
        self._open.set()
        self._asking = 0

    async def run(self, random: Random, until: float) -> None:
        """Ask until that moment (`time.monotonic`), and read what is asked then to its end."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._clients):
                group.create_task(self._client(Random(random.random()), until))

    async def hush(self) -> None:
        """No more questions; returns when the last one has been answered."""
        self._open.clear()
        while self._asking:
            await asyncio.sleep(0.05)

    def resume(self) -> None:
        self._open.set()

    async def verify_all(self) -> None:
        """Every question once more, one after another."""
        for known in self._known:
            names = self.names.embedders if known.question.kind == "embedding" else self.names.chats
            for name in sorted(names):
                began = time.monotonic()
                outcome = await self._asker.ask(known.question, name)
                self._judge(known, name, outcome, began)

    async def _client(self, random: Random, until: float) -> None:
        while True:
            await self._open.wait()
            if time.monotonic() >= until:
                return
            self._asking += 1
            try:
                turned_away = await self._ask(random)
            finally:
                self._asking -= 1
            pauses = [0.5] if turned_away else [0, 0, 0, 0.2, 1.0]
            await asyncio.sleep(random.choice(pauses) * random.random())

    async def _ask(self, random: Random) -> bool:
        """Whether the server had no place for the question."""
        known = random.choice(self._known)
        kind = known.question.kind
        name = random.choice(sorted(self.names.embedders if kind == "embedding" else self.names.chats))
        leave = HangUp.draw(random) if random.random() < HANG_UP_SHARE else None
        stream = kind != "embedding" and random.random() < STREAM_SHARE
        began = time.monotonic()
        outcome = await self._asker.ask(known.question, name, stream, leave)
        what = f"{kind}, streamed" if stream else kind
        self._tally.counts[what] += 1
        self._judge(known, name, outcome, began)
        if outcome.status == 200:
            self._tally.latencies[what].append(outcome.seconds)
            if outcome.first is not None:
                self._tally.latencies[f"{what}: first text"].append(outcome.first)
        return outcome.status == 503

    def _judge(self, known: Known, name: str, outcome: Outcome, began: float) -> None:
        counts, problem = self._tally.counts, self._tally.problem
        asked = f"{known.question.kind} of {name}"
        counts["told to wait for a wake"] += any("waking up" in said for said in outcome.said)
        if outcome.status is None:
            counts["hung up"] += 1
        elif outcome.reply is not None:
            counts["answered"] += 1
            if not outcome.reply.equals(known.reply):
                counts["wrong"] += 1
                said, right = outcome.reply.shown(), known.reply.shown()
                problem(f"wrong: {asked} {known.question.body}: {said}, but alone {right}")
        elif outcome.status == 500:
            counts["500"] += 1
            now = time.time()
            self._tally.failed_at.append((now - outcome.seconds, now))
        elif outcome.status == 503:
            counts["503"] += 1
            if outcome.retry_after is None:
                problem(f"a 503 without Retry-After: {asked}: {outcome.message}")
        elif outcome.status == 404 and self.names.may_be_unknown(name, began):
            counts["404 of a name that was taken away"] += 1
        else:
            counts["other"] += 1
            problem(f"{asked} {known.question.body}: {outcome.status} {outcome.message}")
