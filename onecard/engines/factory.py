"""From a registry and its fetched files to a node that serves: the composition root of the engines."""

import asyncio
import logging
import os
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from onecard.engines.api import LoadProgress, StatsSink
from onecard.engines.encoder.build import build_encoder
from onecard.engines.lifecycle.keeper import Keeper
from onecard.engines.lifecycle.move import Placement, move_in
from onecard.engines.llm.build import build_llm
from onecard.engines.memory.arena import DeviceArena
from onecard.engines.memory.card import card_facts
from onecard.engines.memory.card_plan import CardPlan
from onecard.engines.memory.nvml import open_monitor
from onecard.engines.memory.page_pool import PagePool
from onecard.engines.memory.plan import plan_card
from onecard.engines.models.config import EncoderConfig, ModelConfig
from onecard.engines.needs import model_needs, read_config
from onecard.engines.node import Card, LocalNode, ServedModel
from onecard.engines.reports import encoder_status, llm_status
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


@dataclass(frozen=True)
class _Surroundings:
    """What all cards and models of a node share."""

    outbox: Outbox
    executor: Executor
    stats: StatsSink
    progress: LoadProgress
    warm_up: bool


async def start_node(
    registry: Registry,
    paths: dict[str, Path],
    stats: StatsSink,
    progress: LoadProgress | None = None,
    warm_up: bool = True,
) -> LocalNode:
    """Plan, allocate and load everything, then start the device loops. Call it on the event loop that
    serves. `warm_up=False` leaves the first steps to the first requests."""
    around = _Surroundings(
        Outbox(asyncio.get_running_loop()),
        ThreadPoolExecutor(TOKENIZER_THREADS, thread_name_prefix="tokenizer"),
        stats,
        progress or (lambda *_: None),
        warm_up,
    )
    build = partial(_build_all, registry, paths, around)
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
    registry: Registry, paths: dict[str, Path], around: _Surroundings
) -> tuple[list[Card], list[ServedModel]]:
    cards: list[Card] = []
    models: list[ServedModel] = []
    for spec in registry.cards:
        plan, configs = _plan(registry, spec, paths)
        card, handle = _open_card(plan, spec.quantum, around)
        cards.append(card)
        for model in _models_of(registry, spec):
            models.append(_build_model(model, configs[model.name], paths[model.name], card, handle, around))
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


def _open_card(plan: CardPlan, quantum: float | None, around: _Surroundings) -> tuple[Card, CardHandle]:
    device = torch.device(plan.device)
    arena = DeviceArena(plan.arena_bytes, plan.page_bytes, device)
    pool = PagePool(plan.num_pages, plan.page_bytes)
    pool.keep_for_last({page for model in plan.models for page in model.home})
    clock = step_clock(device)
    share = FairShare(QUANTUM_SECONDS[device.type] if quantum is None else quantum)
    loop = DeviceLoop(plan.card, around.outbox, clock, share, partial(_prepare_thread, device))
    planned = plan.arena_bytes + plan.workspace_bytes + plan.graph_bytes
    watch = CardWatch(plan.card, open_monitor(device, logger), planned)
    handle = CardHandle(
        device, arena, pool, loop, clock, graph_backend(device), around.executor, around.stats
    )
    return Card(plan, arena, pool, loop, watch, Keeper(plan.card, arena, pool, loop)), handle


def _prepare_thread(device: torch.device) -> None:
    """Settings of the device-loop thread: a CPU card computes on every core this process may use."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))


def _captured(progress: LoadProgress, model: str, done: int, total: int) -> None:
    progress(model, done, total, "graphs")


def _build_model(
    spec: ModelSpec, config: ModelConfig, path: Path, card: Card, handle: CardHandle, around: _Surroundings
) -> ServedModel:
    share = card.plan.model(spec.name)
    place = Placement(
        handle,
        share,
        around.warm_up,
        on_load=partial(around.progress, spec.name),
        on_capture=partial(_captured, around.progress, spec.name),
    )
    if isinstance(config, EncoderConfig):
        encoder, residence = build_encoder(spec, config, path, place)
        served = ServedModel(
            encoder.info, encoder, residence, partial(encoder_status, encoder, residence, card.plan)
        )
    else:
        llm, residence = build_llm(spec, config, path, place)
        served = ServedModel(
            llm.info, llm, residence, partial(llm_status, llm, residence, card.plan, card.pool)
        )
    card.keeper.add(residence)
    if share.awake_at_start:
        move_in(residence, handle)
    return served
