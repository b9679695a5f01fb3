"""Rows of `onecard ps`: what a model holds and does."""

from onecard.engines.api import CacheConfig, ModelStatus
from onecard.engines.lifecycle.card_model import CardModel
from onecard.engines.lifecycle.ledger import shown_state, weight_bytes
from onecard.engines.memory.page_pool import PagePool
from onecard.engines.node.served import Card
from onecard.engines.oneshot.engine import EmbeddingEngine
from onecard.engines.paged.engine import GenerationEngine


def llm_status(engine: GenerationEngine, card_model: CardModel, card: Card, block_bytes: int) -> ModelStatus:
    scheduler = engine.core.scheduler
    return ModelStatus(
        name=engine.info.name,
        kind=engine.info.kind,
        card=card.plan.card,
        state=shown_state(card_model, card.pool),
        weight_bytes=weight_bytes(card_model, card.pool),
        kv_bytes_used=scheduler.kv.pool.num_used_blocks * block_bytes,
        kv_bytes_owned=_owned(card.pool, card_model.name) * card.plan.page_bytes,
        floor_bytes=card_model.floor_pages * card.plan.page_bytes,
        ceiling_bytes=card_model.ceiling_pages * card.plan.page_bytes,
        running=len(scheduler.running),
        waiting=len(scheduler.waiting) + card_model.gate.num_waiting,
        finished=engine.core.num_finished,
        cache=CacheConfig(
            block_size=scheduler.kv.block_size,
            num_blocks=card_model.ceiling_pages * scheduler.kv.pool.blocks_per_page,
            prefix_caching=scheduler.kv.enable_caching,
        ),
    )


def encoder_status(engine: EmbeddingEngine, card_model: CardModel, card: Card) -> ModelStatus:
    return ModelStatus(
        name=engine.info.name,
        kind=engine.info.kind,
        card=card.plan.card,
        state=shown_state(card_model, card.pool),
        weight_bytes=weight_bytes(card_model, card.pool),
        kv_bytes_used=0,
        kv_bytes_owned=0,
        floor_bytes=card_model.floor_pages * card.plan.page_bytes,
        ceiling_bytes=card_model.ceiling_pages * card.plan.page_bytes,
        running=engine.core.num_running,
        waiting=engine.core.num_waiting + card_model.gate.num_waiting,
        finished=engine.num_finished,
    )


def _owned(pool: PagePool, name: str) -> int:
    try:
        return pool.owned(name)
    except KeyError:  # it has failed, or isn't on the card yet
        return 0
