"""Who has a place on a card now, and who would have to leave it for another."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

from onecard.engines.api import ModelUnavailableError
from onecard.engines.lifecycle.residence import Residence
from onecard.engines.lifecycle.room import NoRoomError, Tenant, make_room
from onecard.engines.memory.page_pool import PagePool


class Occupancy:
    """Views of a card's models, by name, those in `leaving` on their way out. Lives on the event loop.

    A model has its place for as long as its home is claimed, whatever its state: also while its last requests
    finish, or once it has failed and isn't buried yet.
    """

    def __init__(self, residences: Mapping[str, Residence], leaving: Container[Residence], pool: PagePool):
        self._residences, self._leaving, self._pool = residences, leaving, pool

    def sleepers_for(self, residence: Residence, beside: Residence | None = None) -> list[Residence]:
        """Who has to leave so that it can be awake, also `beside` another that isn't yet. Raises
        `ModelUnavailableError` where those that never sleep are in its way."""
        tenants = [
            replace(tenant, awake=True) if beside is not None and tenant.name == beside.name else tenant
            for tenant in self.tenants()
        ]
        try:
            room = make_room(tenants, residence.name, self._pool.num_pages)
        except NoRoomError as error:
            raise ModelUnavailableError(f"The model `{residence.name}` can't wake up: {error}.") from error
        return [self._residences[name] for name in room.sleepers]

    def may_pass(self, residence: Residence, other: Residence | None) -> bool:
        """Whether it needs nobody's room, nor that which is being made for the `other`."""
        if self.sleepers_for(residence):
            return False
        if other is None:
            return True
        try:
            return self.sleepers_for(other) == self.sleepers_for(other, beside=residence)
        except ModelUnavailableError:
            return False

    def tenants(self) -> Sequence[Tenant]:
        """Of those that might leave, the ones that are about to come first."""
        return [
            Tenant(
                residence.name,
                residence.weights.home,
                residence.floor_pages,
                self._pool.has_home(residence.name),
                residence.policy.pinned and residence.gate.state != "failed",
                residence in self._leaving or not residence.busy,
                0.0 if residence in self._leaving else residence.gate.last_used,
                residence.longest_pages,
            )
            for residence in self._residences.values()
        ]
