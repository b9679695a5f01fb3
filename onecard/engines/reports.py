"""Rows of `onecard ps`: what a model holds and does."""

from onecard.engines.api import ModelStatus
from onecard.engines.encoder.engine import EncoderEngine
from onecard.engines.lifecycle.residence import Residence
from onecard.engines.llm.engine import LLMEngine
from onecard.engines.memory.card_plan import CardPlan
from onecard.engines.memory.page_pool import PagePool


def llm_status(engine: LLMEngine, residence: Residence, plan: CardPlan, pool: PagePool) -> ModelStatus:
    scheduler = engine.core.scheduler
    block_bytes = plan.model(engine.info.name).block_bytes or 0
    return ModelStatus(
        name=engine.info.name,
        kind=engine.info.kind,
        card=plan.card,
        state=residence.gate.state,
        weight_bytes=residence.weights.weight_bytes if residence.awake else 0,
        kv_bytes_used=scheduler.kv.pool.num_used_blocks * block_bytes,
        kv_bytes_owned=pool.owned(engine.info.name) * plan.page_bytes,
        floor_bytes=residence.floor_pages * plan.page_bytes,
        ceiling_bytes=residence.ceiling_pages * plan.page_bytes,
        running=len(scheduler.running),
        waiting=len(scheduler.waiting) + residence.gate.num_waiting,
        finished=engine.core.num_finished,
    )


def encoder_status(engine: EncoderEngine, residence: Residence, plan: CardPlan) -> ModelStatus:
    return ModelStatus(
        name=engine.info.name,
        kind=engine.info.kind,
        card=plan.card,
        state=residence.gate.state,
        weight_bytes=residence.weights.weight_bytes if residence.awake else 0,
        kv_bytes_used=0,
        kv_bytes_owned=0,
        floor_bytes=residence.floor_pages * plan.page_bytes,
        ceiling_bytes=residence.ceiling_pages * plan.page_bytes,
        running=engine.core.num_running,
        waiting=engine.core.num_waiting + residence.gate.num_waiting,
        finished=engine.num_finished,
    )
