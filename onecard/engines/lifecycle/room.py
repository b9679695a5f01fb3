"""Who has to sleep so that a model can wake up: a pure decision over a snapshot of a card's models."""

from collections.abc import Sequence
from dataclasses import dataclass

from onecard.engines.memory.homes import Resident, can_be_awake, overlaps, promised_pages


@dataclass(frozen=True)
class Tenant:
    """One model of a card. `idle`: nothing of it runs or waits. `last_used`: seconds, larger is later.
    `longest_pages`: what its longest request takes; 0 without KV."""

    name: str
    home: range
    floor_pages: int
    awake: bool
    pinned: bool = False
    idle: bool = True
    last_used: float = 0.0
    longest_pages: int = 0

    @property
    def resident(self) -> Resident:
        return Resident(self.name, self.home, floor_pages=self.floor_pages, longest_pages=self.longest_pages)


@dataclass(frozen=True)
class Room:
    """What makes room: these models sleep, in this order; those of them in `busy` have to finish first."""

    sleepers: tuple[str, ...] = ()
    busy: tuple[str, ...] = ()


class NoRoomError(Exception):
    """The model can't be awake beside those that never sleep."""


def make_room(tenants: Sequence[Tenant], wanted: str, num_pages: int) -> Room:
    """Who sleeps so that `wanted`'s home is free, all floors hold, and whoever is awake then has room for its
    longest request.

    First whoever's home lies in the way; then, until the rest fits, the idle ones before the busy ones, the
    least recently used first. Raises `NoRoomError` where pinned models stand in the way.
    """
    newcomer = next(tenant for tenant in tenants if tenant.name == wanted)
    awake = [tenant for tenant in tenants if tenant.awake and tenant.name != wanted]
    in_the_way = [tenant for tenant in awake if overlaps(tenant.home, newcomer.home)]
    if stuck := [tenant.name for tenant in in_the_way if tenant.pinned]:
        raise NoRoomError(
            f"the weights of {', '.join(stuck)}, which never sleep, lie where {wanted}'s belong"
        )
    staying = [tenant for tenant in awake if tenant not in in_the_way]
    sleepers = _in_order(in_the_way)
    candidates = _in_order([tenant for tenant in staying if not tenant.pinned])
    while not can_be_awake(residents := [t.resident for t in (newcomer, *staying)], num_pages):
        if not candidates:
            raise NoRoomError(
                f"{wanted} and the models that never sleep are promised {promised_pages(residents)} pages of "
                f"{num_pages}"
            )
        sleepers.append(candidates.pop(0))
        staying.remove(sleepers[-1])
    return Room(tuple(t.name for t in sleepers), tuple(t.name for t in sleepers if not t.idle))


def _in_order(tenants: Sequence[Tenant]) -> list[Tenant]:
    return sorted(tenants, key=lambda tenant: (not tenant.idle, tenant.last_used, tenant.name))
