"""From a registry and its fetched files to a node that serves: the composition root of the engines."""

import asyncio
import logging
import os
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from onecard.engines.api import LoadProgress, ModelStatus, StatsSink
from onecard.engines.encoder.build import build_encoder
from onecard.engines.encoder.engine import EncoderEngine
from onecard.engines.llm.build import build_llm
from onecard.engines.llm.engine import LLMEngine
from onecard.engines.memory.arena import DeviceArena
from onecard.engines.memory.card import card_facts
from onecard.engines.memory.nvml import open_monitor
from onecard.engines.memory.page_pool import PagePool
from onecard.engines.memory.plan import CardPlan, ModelPlan, plan_card
from onecard.engines.models.config import DecoderConfig, EncoderConfig, ModelConfig
from onecard.engines.needs import model_needs, read_config
from onecard.engines.node import Card, LocalNode, ServedModel
from onecard.engines.runtime.card_handle import CardHandle
from onecard.engines.runtime.card_watch import CardWatch
from onecard.engines.runtime.cuda_graphs import graph_backend
from onecard.engines.runtime.device_loop import DeviceLoop
from onecard.engines.runtime.fair_share import FairShare
from onecard.engines.runtime.inbox import Outbox
from onecard.engines.runtime.step_clock import step_clock
from onecard.registry.spec import CardSpec, ModelSpec, Registry

logger = logging.getLogger(__name__)

TOKENIZER_THREADS = 2

QUANTUM_SECONDS = {"cuda": 0.02, "cpu": 0.1}
"""The longest step while several models want a card, where the registry doesn't say."""


def plan_registry(registry: Registry, paths: dict[str, Path]) -> list[CardPlan]:
    """The memory plan of every card, from headers alone. `paths`: each model's fetched file or folder.

    Raises `PlanError` where the models don't fit, and the loader's errors where a file can't be served.
    """
    return [_plan(registry, spec, paths)[0] for spec in registry.cards]


async def start_node(
    registry: Registry, paths: dict[str, Path], stats: StatsSink, progress: LoadProgress | None = None
) -> LocalNode:
    """Plan, allocate and load everything, then start the device loops. Call it on the event loop that
    serves."""
    outbox = Outbox(asyncio.get_running_loop())
    executor = ThreadPoolExecutor(TOKENIZER_THREADS, thread_name_prefix="tokenizer")
    build = partial(_build_all, registry, paths, outbox, executor, stats, progress or (lambda *_: None))
    # A thread of its own that ends: while a second thread with an OpenMP team lives, the teams of a CPU's
    # device loop wait for each other in the kernel instead of spinning, and every parallel operation takes
    # twice as long.
    with ThreadPoolExecutor(1, thread_name_prefix="loader") as loader:
        cards, models = await asyncio.get_running_loop().run_in_executor(loader, build)
    for card in cards:
        card.start()
    order = [spec.name for spec in registry.models]
    return LocalNode(cards, sorted(models, key=lambda model: order.index(model.info.name)))


def _build_all(
    registry: Registry,
    paths: dict[str, Path],
    outbox: Outbox,
    executor: Executor,
    stats: StatsSink,
    progress: LoadProgress,
) -> tuple[list[Card], list[ServedModel]]:
    cards: list[Card] = []
    models: list[ServedModel] = []
    for spec in registry.cards:
        plan, configs = _plan(registry, spec, paths)
        card, handle = _open_card(plan, spec.quantum, outbox, executor, stats)
        cards.append(card)
        for model in _models_of(registry, spec):
            models.append(_build_model(model, configs[model.name], paths[model.name], plan, handle, progress))
    return cards, models


def _models_of(registry: Registry, card: CardSpec) -> list[ModelSpec]:
    return [model for model in registry.models if registry.card_of(model) is card]


def _plan(
    registry: Registry, spec: CardSpec, paths: dict[str, Path]
) -> tuple[CardPlan, dict[str, ModelConfig]]:
    facts = card_facts(spec)
    configs: dict[str, ModelConfig] = {}
    needs = []
    for model in _models_of(registry, spec):
        configs[model.name] = read_config(model, paths[model.name])
        needs.append(model_needs(model, configs[model.name], paths[model.name], facts))
    return plan_card(facts, needs, spec.page_size), configs


def _open_card(
    plan: CardPlan, quantum: float | None, outbox: Outbox, executor: Executor, stats: StatsSink
) -> tuple[Card, CardHandle]:
    device = torch.device(plan.device)
    arena = DeviceArena(plan.arena_bytes, plan.page_bytes, device)
    pool = PagePool(plan.num_pages, plan.page_bytes)
    clock = step_clock(device)
    share = FairShare(QUANTUM_SECONDS[device.type] if quantum is None else quantum)
    loop = DeviceLoop(plan.card, outbox, clock, share, partial(_prepare_thread, device))
    planned = plan.weight_bytes + plan.arena_bytes + plan.workspace_bytes
    watch = CardWatch(plan.card, open_monitor(device, logger), planned)
    return Card(plan, arena, pool, loop, watch), CardHandle(
        device, arena, pool, loop, clock, graph_backend(device), executor, stats
    )


def _prepare_thread(device: torch.device) -> None:
    """Settings of the device-loop thread: a CPU card computes on every core this process may use."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))


def _build_model(
    spec: ModelSpec,
    config: ModelConfig,
    path: Path,
    plan: CardPlan,
    card: CardHandle,
    progress: LoadProgress,
) -> ServedModel:
    share = plan.model(spec.name)
    report_bytes = partial(progress, spec.name)
    if isinstance(config, EncoderConfig):
        encoder, loaded = build_encoder(spec, config, path, card, report_bytes)
        return ServedModel(
            encoder.info, encoder, partial(_encoder_status, encoder, plan, share, loaded.weight_bytes)
        )
    assert isinstance(config, DecoderConfig)
    llm, loaded = build_llm(spec, config, path, card, share.floor_pages, share.ceiling_pages, report_bytes)
    return ServedModel(llm.info, llm, partial(_llm_status, llm, plan, share, loaded.weight_bytes, card.pool))


def _llm_status(
    engine: LLMEngine, plan: CardPlan, share: ModelPlan, weights: int, pool: PagePool
) -> ModelStatus:
    scheduler = engine.core.scheduler
    return ModelStatus(
        name=engine.info.name,
        kind=engine.info.kind,
        card=plan.card,
        state="ready",
        weight_bytes=weights,
        kv_bytes_used=scheduler.kv.pool.num_used_blocks * (share.block_bytes or 0),
        kv_bytes_owned=pool.owned(engine.info.name) * plan.page_bytes,
        floor_bytes=share.floor_pages * plan.page_bytes,
        ceiling_bytes=share.ceiling_pages * plan.page_bytes,
        running=len(scheduler.running),
        waiting=len(scheduler.waiting),
        finished=engine.core.num_finished,
    )


def _encoder_status(engine: EncoderEngine, plan: CardPlan, share: ModelPlan, weights: int) -> ModelStatus:
    return ModelStatus(
        name=engine.info.name,
        kind=engine.info.kind,
        card=plan.card,
        state="ready",
        weight_bytes=weights,
        kv_bytes_used=0,
        kv_bytes_owned=0,
        floor_bytes=share.floor_pages * plan.page_bytes,
        ceiling_bytes=share.ceiling_pages * plan.page_bytes,
        running=engine.core.num_running,
        waiting=engine.core.num_waiting,
        finished=engine.num_finished,
    )
