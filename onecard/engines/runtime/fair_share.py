"""Which engine runs next: weighted fair sharing of one card's time. Pure: no clock, no threads.

Start-time fair queueing (Goyal, Vin, Cheng 1996) with measured instead of declared costs: every engine has a
virtual time that advances by `seconds / weight` for each step it ran, and the backlogged engine with the
smallest virtual time goes next. An engine that was idle joins at the virtual time of the clock, so idling
earns no credit: nobody can save up time and then shut the others out.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass
class _Share:
    weight: float
    virtual_time: float = 0.0
    backlogged: bool = False


class FairShare:
    def __init__(self) -> None:
        self._shares: dict[str, _Share] = {}
        self._clock = 0.0

    def add(self, name: str, weight: float) -> None:
        """`weight` > 0: the engine's part of the card's time while others want it too."""
        if weight <= 0:
            raise ValueError(f"weight of {name!r} must be positive, got {weight}")
        self._shares[name] = _Share(weight, self._clock)

    def remove(self, name: str) -> None:
        del self._shares[name]

    def pick(self, backlogged: Iterable[str]) -> str | None:
        """The engine to run next of those that have work; None if none has. Ties go to the first added."""
        names = set(backlogged)
        for name, share in self._shares.items():
            if name in names and not share.backlogged:
                share.virtual_time = max(share.virtual_time, self._clock)
            share.backlogged = name in names
        if not names:
            return None
        chosen = min((n for n in self._shares if n in names), key=lambda n: self._shares[n].virtual_time)
        self._clock = self._shares[chosen].virtual_time
        return chosen

    def charge(self, name: str, seconds: float) -> None:
        """`name` used the card for `seconds`."""
        share = self._shares[name]
        share.virtual_time += seconds / share.weight
