"""A card's books for people: whose pages are whose, right now."""

from onecard.engines.api import CardLedger, ModelLedger, ModelState
from onecard.engines.lifecycle.card_model import CardModel
from onecard.engines.lifecycle.manager import LifecycleManager
from onecard.engines.memory.accounts import PageCounts
from onecard.engines.memory.page_pool import PagePool


def card_ledger(manager: LifecycleManager) -> CardLedger:
    """Read while the card's loop may be at work: figures of different models may be a step apart."""
    pool = manager.pool
    accounts = {engine.name: engine for engine in pool.counts()}
    return CardLedger(
        card=manager.card,
        page_bytes=pool.page_bytes,
        num_pages=pool.num_pages,
        free_pages=pool.free_pages,
        models=tuple(_model(r, pool, accounts.get(r.name)) for r in list(manager.card_models.values())),
        recalls=dict(pool.recalls),
        preemptions=dict(pool.preemptions),
    )


def shown_state(card_model: CardModel, pool: PagePool) -> ModelState:
    """The gate closes when a model is to sleep; until its requests are finished and its home is free it is on
    its way only."""
    state = card_model.gate.state
    if state in ("asleep", "unloaded") and pool.has_home(card_model.name):
        return "falling_asleep"
    return state


def weight_bytes(card_model: CardModel, pool: PagePool) -> int:
    """Of weights on the card: what the home is claimed for."""
    return card_model.weights.weight_bytes if pool.has_home(card_model.name) else 0


def _model(card_model: CardModel, pool: PagePool, account: PageCounts | None) -> ModelLedger:
    home, weights = card_model.weights.home, card_model.weights
    return ModelLedger(
        name=card_model.name,
        state=shown_state(card_model, pool),
        home_first_page=home.start,
        home_pages=len(home),
        claimed_pages=len(pool.home(card_model.name)),
        owned_pages=0 if account is None else account.owned,
        active_pages=0 if account is None else account.active,
        cached_pages=0 if account is None else account.cached,
        idle_pages=0 if account is None else account.idle,
        floor_pages=card_model.floor_pages,
        ceiling_pages=card_model.ceiling_pages,
        borrowed_pages=0 if account is None else account.borrowed,
        demand_pages=0 if account is None else account.demand,
        weight_bytes=weights.weight_bytes,
        host_bytes=weights.host_bytes,
    )
