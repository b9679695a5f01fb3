"""Which engine of a card runs next, and for how long. Pure: no clock, no threads.

Earliest eligible virtual deadline first (EEVDF; Stoica and Abdel-Wahab 1995), with measured instead of
declared costs. Every engine has a virtual time that advances by `seconds / weight` for the steps it ran; the
virtual time of the card is the mean of those that have work, by weight. An engine is *eligible* while it has
had no more than its share (its virtual time is not past the card's), and of the eligible ones the one goes
next that would end a quantum soonest in virtual time. So nobody is ever more than one step ahead of or behind
its share, however many neighbours it has; start-time fair queueing and deficit round robin let a heavy engine
fall behind by a step of each of them.

Priorities change who goes first, not who gets how much: an engine with a more urgent request than another's
goes first, and may do so until it is `LEAD_QUANTA` ahead of its share or somebody less urgent as far behind.
An engine that was idle earns no credit: it comes back at the card's virtual time, or with the debt it left
with.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

LEAD_QUANTA = 2.0
"""How far, in quanta of device time, priorities may put an engine ahead of or behind its share."""

_ROUNDING_SECONDS = 1e-9


@dataclass(slots=True)
class _Share:
    weight: float
    virtual_time: float = 0.0
    backlogged: bool = False
    last_backlogged: float = float("-inf")
    last_turn: int = 0


class FairShare:
    """Divides a card's seconds among engines by weight.

    `quantum_seconds`: what a step may take while others are active, that is, have work or had some within
    the last `linger_seconds`: a newcomer then waits for one quantum at most, and an engine that is alone
    isn't cut into small steps.
    """

    def __init__(self, quantum_seconds: float, linger_seconds: float = 2.0) -> None:
        if quantum_seconds <= 0:
            raise ValueError(f"the quantum must be positive, got {quantum_seconds} s")
        self.quantum_seconds = quantum_seconds
        self.linger_seconds = linger_seconds
        self._shares: dict[str, _Share] = {}
        self._turns = 0
        self._clock = 0.0
        """The card's virtual time, as of the last pick."""

    def add(self, name: str, weight: float) -> None:
        """`weight` > 0: the engine's part of the card's time while others want it too."""
        self._shares[name] = _Share(_checked(name, weight), self._clock)

    def remove(self, name: str) -> None:
        del self._shares[name]

    def set_weight(self, name: str, weight: float) -> None:
        """From now on; the seconds that the engine is ahead of or behind its share stay what they are."""
        share = self._shares[name]
        ahead = share.virtual_time - self._clock
        share.virtual_time = self._clock + ahead * share.weight / _checked(name, weight)
        share.weight = weight

    def pick(self, backlogged: Mapping[str, int], now: float) -> tuple[str, float | None] | None:
        """Who runs next of those that have work, and the seconds that its step should take at most (None: as
        many as it likes); None if none has work.

        `backlogged`: the priority of each engine's most urgent request, smaller is more urgent. `now`:
        seconds on any clock that doesn't go back. Of equals the one goes that has waited longest. An engine
        that turns out to be unable to run may be left out of the next call: it then counts as idle.
        """
        active = {name: share for name, share in self._shares.items() if name in backlogged}
        if not active:
            return None
        self._admit(active, now)
        eligible = [name for name in active if self._is_eligible(name, active, backlogged)]
        chosen = min(eligible or active, key=lambda n: (backlogged[n], *self._deadline(active[n])))
        self._turns += 1
        active[chosen].last_turn = self._turns
        return chosen, self.quantum_seconds if self._has_company(chosen, now) else None

    def charge(self, name: str, seconds: float) -> None:
        """`name` used the card for `seconds`; negative where an estimate charged before was too high.

        An engine that is gone is nobody's concern: its last step may well end after its removal.
        """
        share = self._shares.get(name)
        if share is not None:
            share.virtual_time += seconds / share.weight

    def _admit(self, active: Mapping[str, _Share], now: float) -> None:
        """Brings the card's time up to date; who comes back joins there."""
        before = [share for share in self._shares.values() if share.backlogged]
        stayed = [share for share in active.values() if share.backlogged]
        self._clock = _mean_virtual_time(stayed or before, self._clock)
        for share in active.values():
            if not share.backlogged:
                share.virtual_time = max(share.virtual_time, self._clock)
            share.last_backlogged = now
        self._clock = _mean_virtual_time(active.values(), self._clock)
        for name, share in self._shares.items():
            share.backlogged = name in active

    def _is_eligible(self, name: str, active: Mapping[str, _Share], priority: Mapping[str, int]) -> bool:
        ahead = self._seconds_ahead(active[name])
        if ahead <= _ROUNDING_SECONDS:
            return True
        lead = LEAD_QUANTA * self.quantum_seconds
        less_urgent = [share for other, share in active.items() if priority[other] > priority[name]]
        behind = max((-self._seconds_ahead(share) for share in less_urgent), default=lead)
        return ahead < lead and behind < lead

    def _seconds_ahead(self, share: _Share) -> float:
        """Device time that it had beyond its share."""
        return (share.virtual_time - self._clock) * share.weight

    def _deadline(self, share: _Share) -> tuple[float, int]:
        return share.virtual_time + self.quantum_seconds / share.weight, share.last_turn

    def _has_company(self, name: str, now: float) -> bool:
        others = (share for other, share in self._shares.items() if other != name)
        return any(now - share.last_backlogged <= self.linger_seconds for share in others)


def _mean_virtual_time(shares: Collection[_Share], default: float) -> float:
    total = sum(share.weight for share in shares)
    return sum(share.weight * share.virtual_time for share in shares) / total if shares else default


def _checked(name: str, weight: float) -> float:
    if not weight > 0:
        raise ValueError(f"weight of {name!r} must be positive, got {weight}")
    return weight
