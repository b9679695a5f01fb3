"""What waits to be encoded: texts of many requests, taken by token budget.

The method is text-embeddings-inference's: no fixed batch size, each step takes as many whole texts as its
token budget holds, in order, so short texts run many at once and long ones few. Where a step has to be short,
it is bounded by what its texts take, too: a long one takes more than short ones of as many tokens.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from onecard.engines.runtime.step_budget import TextTime


@dataclass(slots=True, eq=False)
class Queued:
    """A request's place in the queue: smaller `priority` first; `waiting` counts its texts not yet taken."""

    priority: int = 0
    cancelled: bool = False
    waiting: int = 0


@dataclass(slots=True)
class Entry:
    """One text of a request: its place among the request's inputs, its token ids, and each one's type where
    the text is a pair of two."""

    queued: Queued
    index: int
    token_ids: list[int]
    type_ids: list[int] | None = None


@dataclass
class TokenBudgetQueue:
    """Every operation costs O(1) a text. Belongs to one thread.

    `max_tokens` and `max_seqs` bound a step; a single text longer than `max_tokens` gets a step to itself.
    """

    max_tokens: int
    max_seqs: int
    _lanes: dict[int, deque[Entry]] = field(default_factory=dict)
    _num_waiting: int = 0

    def __len__(self) -> int:
        """Texts that wait, those of cancelled requests not counted."""
        return self._num_waiting

    @property
    def priority(self) -> int:
        """The smallest that waits; 0 when nothing does."""
        return min(self._lanes, default=0)

    def add(
        self, queued: Queued, texts: list[list[int]], type_ids: Sequence[list[int] | None] | None = None
    ) -> None:
        """Queue all texts of a request behind those of equal priority."""
        if queued.cancelled:
            return
        lane = self._lanes.setdefault(queued.priority, deque())
        types = type_ids or [None] * len(texts)
        lane.extend(Entry(queued, index, *text) for index, text in enumerate(zip(texts, types, strict=True)))
        queued.waiting += len(texts)
        self._num_waiting += len(texts)

    def cancel(self, queued: Queued) -> None:
        """Forget what waits of a request (its entries are dropped when they come up). Idempotent."""
        queued.cancelled = True
        self._num_waiting -= queued.waiting
        queued.waiting = 0
        if self._num_waiting == 0:
            self._lanes.clear()

    def take(self, max_tokens: int | None = None, time: TextTime | None = None) -> list[Entry]:
        """The texts of the next step, in order; empty when nothing waits.

        `max_tokens` lowers this step's budget, and `time` bounds what its texts take together. The first text
        is taken whatever its length: texts aren't cut.
        """
        taken: list[Entry] = []
        tokens = self.max_tokens if max_tokens is None else min(max_tokens, self.max_tokens)
        seconds = inf if time is None else time.seconds
        while len(taken) < self.max_seqs and (entry := self._first()) is not None:
            length = len(entry.token_ids)
            cost = 0.0 if time is None else time.of(length)
            if taken and (length > tokens or cost > seconds):
                break
            self._lanes[entry.queued.priority].popleft()
            entry.queued.waiting -= 1
            self._num_waiting -= 1
            tokens -= length
            seconds -= cost
            taken.append(entry)
        return taken

    def put_back(self, taken: list[Entry]) -> None:
        """Texts that were taken just now go back to where they were, in the order in which they were taken;
        those of requests that were cancelled since are dropped."""
        for entry in reversed(taken):
            if not entry.queued.cancelled:
                self._lanes.setdefault(entry.queued.priority, deque()).appendleft(entry)
                entry.queued.waiting += 1
                self._num_waiting += 1

    def _first(self) -> Entry | None:
        """The entry whose turn it is, left in place; cancelled ones before it are dropped."""
        while self._lanes:
            priority = min(self._lanes)
            lane = self._lanes[priority]
            while lane:
                if not lane[0].queued.cancelled:
                    return lane[0]
                lane.popleft()
            del self._lanes[priority]
        return None
