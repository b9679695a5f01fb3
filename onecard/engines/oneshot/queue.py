"""What waits to be encoded: texts of many requests, taken by token budget.

The method is text-embeddings-inference's: no fixed batch size, each step takes as many whole texts as its
token budget holds, so short texts run many at once and long ones few. Requests of equal priority take turns,
a text each, so that one of thousands of texts keeps nobody waiting for its end; within a request order is
kept. Where a step has to be short, it is bounded by what its texts take, too: a long one takes more than
short ones of as many tokens.
"""

from collections import OrderedDict, deque
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
    """Every operation costs O(1) a text, and cancelling O(1) a request. Belongs to one thread.

    `max_tokens` and `max_seqs` bound a step; a single text longer than `max_tokens` gets a step to itself.
    """

    max_tokens: int
    max_seqs: int
    _lanes: dict[int, OrderedDict[Queued, deque[Entry]]] = field(default_factory=dict)
    """By priority: the requests in the order of their turns, each with its texts that wait."""
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
        """Queue all texts of a request, whose turn comes after everybody's of equal priority."""
        if queued.cancelled or not texts:
            return
        types = type_ids or [None] * len(texts)
        entries = (Entry(queued, index, *text) for index, text in enumerate(zip(texts, types, strict=True)))
        self._lanes.setdefault(queued.priority, OrderedDict())[queued] = deque(entries)
        queued.waiting += len(texts)
        self._num_waiting += len(texts)

    def cancel(self, queued: Queued) -> None:
        """Forget what waits of a request. Idempotent."""
        queued.cancelled = True
        self._num_waiting -= queued.waiting
        queued.waiting = 0
        self._drop(queued)

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
            self._pass_turn(entry.queued)
            entry.queued.waiting -= 1
            self._num_waiting -= 1
            tokens -= length
            seconds -= cost
            taken.append(entry)
        return taken

    def put_back(self, taken: list[Entry]) -> None:
        """Texts that were taken just now go back to where they were, and so do their requests' turns; those
        of requests that were cancelled since are dropped."""
        for entry in reversed(taken):
            queued = entry.queued
            if not queued.cancelled:
                lane = self._lanes.setdefault(queued.priority, OrderedDict())
                lane.setdefault(queued, deque()).appendleft(entry)
                lane.move_to_end(queued, last=False)
                queued.waiting += 1
                self._num_waiting += 1

    def _first(self) -> Entry | None:
        """The entry whose turn it is, left in place; requests before it that were cancelled meanwhile are
        dropped."""
        while self._lanes:
            queued, texts = next(iter(self._lanes[min(self._lanes)].items()))
            if not queued.cancelled:
                return texts[0]
            self._drop(queued)
        return None

    def _pass_turn(self, queued: Queued) -> None:
        """Its first text goes, and its next turn comes after everybody's."""
        lane = self._lanes[queued.priority]
        lane[queued].popleft()
        if lane[queued]:
            lane.move_to_end(queued)
        else:
            self._drop(queued)

    def _drop(self, queued: Queued) -> None:
        lane = self._lanes.get(queued.priority)
        if lane is not None and lane.pop(queued, None) is not None and not lane:
            del self._lanes[queued.priority]
