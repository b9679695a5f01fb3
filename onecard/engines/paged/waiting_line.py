"""Who begins next: sequences that wait, by priority, and in turns between the groups that sent them.

A group is what one client asked for at once: the answers to a prompt, and the prompts of one HTTP request.
Each sequence gets a turn when it comes: the one after the turn that has come up, or after its group's last.
Of equal turns the one that came first begins. So a request of thousands waits behind itself, whoever comes
next has one turn of each other group before it, and requests of one sequence go first come, first served.
Nobody starves: once a turn has come up nobody gets it any more.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field

from onecard.engines.paged.request import Sequence


@dataclass(slots=True)
class _Group:
    last_turn: int
    num_waiting: int = 0


@dataclass(slots=True)
class _Lane:
    """The groups of one priority that wait; `turn`: the last that has come up."""

    turn: int
    groups: dict[str, _Group] = field(default_factory=dict)


class WaitingLine:
    """Coming and going cost O(log n) comparisons, whoever goes. Touched by the device-loop thread only, but
    for `len`."""

    def __init__(self) -> None:
        self.blocks = 0
        """Blocks that those who wait need to begin."""
        self._line: list[Sequence] = []
        self._lanes: dict[int, _Lane] = {}
        self._latest_turn = 0
        """The largest that has come up in any lane: where a new one goes on, so that those who have begun,
        and may have to wait again, are before those who come."""

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._line)

    def __getitem__(self, index: int) -> Sequence:
        return self._line[index]

    def join(self, sequence: Sequence, blocks: int) -> None:
        """Whoever had a turn keeps it. Counted once with its `blocks`: it doesn't grow while it waits, since
        a token in flight is one of its own."""
        request = sequence.request
        lane = self._lanes.setdefault(request.priority, _Lane(self._latest_turn))
        group = lane.groups.setdefault(request.group, _Group(lane.turn))
        group.num_waiting += 1
        if sequence.turn is None:
            sequence.turn = group.last_turn = max(group.last_turn, lane.turn) + 1
        insort(self._line, sequence, key=_order)
        sequence.waiting_blocks = blocks
        self.blocks += blocks

    def first(self, count: int) -> list[Sequence]:
        """So many of them, in order."""
        return self._line[:count]

    def begin(self, sequence: Sequence) -> None:
        """It waits no longer: its turn has come up."""
        assert sequence.turn is not None
        lane = self._lanes[sequence.request.priority]
        lane.turn = max(lane.turn, sequence.turn)
        self._latest_turn = max(self._latest_turn, sequence.turn)
        self.leave(sequence)

    def leave(self, sequence: Sequence) -> None:
        """It is in line no more; where it doesn't begin its turn has not come up."""
        index = bisect_left(self._line, sequence.order, key=_order)
        assert self._line[index] is sequence, "it is not in line"
        del self._line[index]
        self.blocks -= sequence.waiting_blocks
        request = sequence.request
        lane = self._lanes[request.priority]
        group = lane.groups[request.group]
        group.num_waiting -= 1
        if not group.num_waiting:
            del lane.groups[request.group]
            if not lane.groups:
                del self._lanes[request.priority]


def _order(sequence: Sequence) -> tuple[int, int, float, str, int]:
    return sequence.order
