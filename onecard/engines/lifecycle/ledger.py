"""A card's books for people: whose pages are whose, right now."""

from onecard.engines.api import CardLedger, ModelLedger
from onecard.engines.lifecycle.keeper import Keeper
from onecard.engines.lifecycle.residence import Residence
from onecard.engines.memory.reclaim import EngineSnapshot


def card_ledger(keeper: Keeper) -> CardLedger:
    """Read while the card's loop may be at work: figures of different models may be a step apart."""
    pool = keeper.pool
    snapshot = pool.snapshot()
    accounts = {engine.name: engine for engine in snapshot.engines}
    return CardLedger(
        card=keeper.card,
        page_bytes=pool.page_bytes,
        num_pages=pool.num_pages,
        free_pages=pool.free_pages,
        models=tuple(_model(r, accounts.get(r.name)) for r in list(keeper.residences.values())),
        recalls=dict(pool.recalls),
        preemptions=dict(pool.preemptions),
    )


def _model(residence: Residence, account: EngineSnapshot | None) -> ModelLedger:
    home, weights = residence.weights.home, residence.weights
    return ModelLedger(
        name=residence.name,
        state=residence.gate.state,
        home_first_page=home.start,
        home_pages=len(home),
        owned_pages=0 if account is None else account.owned,
        active_pages=0 if account is None else account.active,
        cached_pages=0 if account is None else len(account.evictable),
        idle_pages=0 if account is None else len(account.idle),
        floor_pages=residence.floor_pages,
        ceiling_pages=residence.ceiling_pages,
        borrowed_pages=0 if account is None else account.borrowed,
        demand_pages=0 if account is None else account.demand,
        weight_bytes=weights.weight_bytes,
        host_bytes=weights.host_bytes,
    )
