"""Who has a place on a card now, and who would have to leave it for another."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

from onecard.engines.api import ModelUnavailableError
from onecard.engines.lifecycle.card_model import CardModel
from onecard.engines.lifecycle.room import NoRoomError, Tenant, make_room
from onecard.engines.memory.page_pool import PagePool


class Occupancy:
    """Views of a card's models, by name, those in `leaving` on their way out. Lives on the event loop.

    A model has its place for as long as its home is claimed, whatever its state: also while its last requests
    finish, or once it has failed and isn't discarded yet.
    """

    def __init__(self, card_models: Mapping[str, CardModel], leaving: Container[CardModel], pool: PagePool):
        self._residences, self._leaving, self._pool = card_models, leaving, pool

    def sleepers_for(self, card_model: CardModel, beside: CardModel | None = None) -> list[CardModel]:
        """Who has to leave so that it can be awake, also `beside` another that isn't yet. Raises
        `ModelUnavailableError` where those that never sleep are in its way."""
        tenants = [
            replace(tenant, awake=True) if beside is not None and tenant.name == beside.name else tenant
            for tenant in self.tenants()
        ]
        try:
            room = make_room(tenants, card_model.name, self._pool.num_pages)
        except NoRoomError as error:
            raise ModelUnavailableError(f"The model `{card_model.name}` can't wake up: {error}.") from error
        return [self._residences[name] for name in room.sleepers]

    def may_pass(self, card_model: CardModel, other: CardModel | None) -> bool:
        """Whether it needs nobody's room, nor that which is being made for the `other`."""
        if self.sleepers_for(card_model):
            return False
        if other is None:
            return True
        try:
            return self.sleepers_for(other) == self.sleepers_for(other, beside=card_model)
        except ModelUnavailableError:
            return False

    def tenants(self) -> Sequence[Tenant]:
        """Of those that might leave, the ones that are about to come first."""
        return [
            Tenant(
                card_model.name,
                card_model.weights.home,
                card_model.floor_pages,
                self._pool.has_home(card_model.name),
                card_model.policy.pinned and card_model.gate.state != "failed",
                card_model in self._leaving or not card_model.busy,
                0.0 if card_model in self._leaving else card_model.gate.last_used,
                card_model.longest_pages,
            )
            for card_model in self._residences.values()
        ]
