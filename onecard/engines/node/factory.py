"""From a registry and its fetched files to a node that serves: the composition root of the engines."""

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from onecard.engines.api import LoadProgress, StatsSink
from onecard.engines.api.errors import explain
from onecard.engines.kinds import KINDS, read_model
from onecard.engines.kinds.kind import Blueprint
from onecard.engines.lifecycle.manager import LifecycleManager
from onecard.engines.memory.arena import DeviceArena
from onecard.engines.memory.card import card_facts, resolve_device
from onecard.engines.memory.card_plan import CardPlan, PlanError
from onecard.engines.memory.monitor import open_monitor
from onecard.engines.memory.page_pool import PagePool
from onecard.engines.memory.plan import plan_card
from onecard.engines.node.local_node import LocalNode
from onecard.engines.node.memory_report import memory_report
from onecard.engines.node.served import Card, NodeContext, ServedModel, build_served, quantum_of
from onecard.engines.runtime.card_handle import CardHandle, graph_backend
from onecard.engines.runtime.card_watch import CardWatch
from onecard.engines.runtime.device_loop import DeviceLoop
from onecard.engines.runtime.fair_share import FairShare
from onecard.engines.runtime.gate import WakeTimeout
from onecard.engines.runtime.inbox import Outbox, run_aside
from onecard.engines.runtime.step_clock import step_clock
from onecard.registry.spec import CardSpec, Registry

logger = logging.getLogger(__name__)

TOKENIZER_THREADS = 2


@dataclass(frozen=True)
class PlannedCard:
    spec: CardSpec
    plan: CardPlan
    blueprints: list[Blueprint]
    """Of its models."""


@dataclass(frozen=True)
class PlannedNode:
    """A registry whose models all name their card, what their headers say, and how the cards are divided."""

    registry: Registry
    cards: tuple[PlannedCard, ...]

    @property
    def plans(self) -> list[CardPlan]:
        return [card.plan for card in self.cards]


def plan_node(registry: Registry, paths: dict[str, Path]) -> PlannedNode:
    """Divides every card, from headers alone. `paths`: each model's fetched file or folder.

    Raises `PlanError` where the models don't fit, and the loader's errors where a file can't be served.
    """
    registry = _placed(registry)
    return PlannedNode(registry, tuple(_plan(registry, spec, paths) for spec in registry.cards))


def plan_registry(registry: Registry, paths: dict[str, Path]) -> list[CardPlan]:
    """The memory plan of every card: see `plan_node`."""
    return plan_node(registry, paths).plans


def file_problems(registry: Registry, paths: dict[str, Path]) -> list[str]:
    """What keeps models from being served that their files' headers tell, a sentence each. `paths`: of those
    models that are on this machine; no card is looked at."""
    problems = []
    for spec in registry.models:
        if spec.name not in paths:
            continue
        try:
            KINDS[spec.kind].read(spec, paths[spec.name])
        except Exception as error:  # each reader has its own
            problems.append(f"model `{spec.name}`: {explain(error)}")
    return problems


async def start_node(
    registry: Registry,
    paths: dict[str, Path],
    stats: StatsSink,
    progress: LoadProgress | None = None,
    warm_up: bool = True,
    on_compile: Callable[[str], None] | None = None,
) -> LocalNode:
    """Plan, allocate and load everything: see `plan_node`, `start_planned`."""
    planned = await run_aside(partial(plan_node, registry, paths))
    return await start_planned(planned, stats, progress, warm_up, on_compile)


async def start_planned(
    planned: PlannedNode,
    stats: StatsSink,
    progress: LoadProgress | None = None,
    warm_up: bool = True,
    on_compile: Callable[[str], None] | None = None,
) -> LocalNode:
    """Allocate and load everything, then start the device loops. Call it on the event loop that serves.

    `warm_up=False` leaves the first steps to the first requests; `on_compile(kernel)` hears, on any thread,
    of kernels that are compiled for a CUDA card once everything is warm.
    """
    registry, outbox = planned.registry, Outbox(asyncio.get_running_loop())
    executor = ThreadPoolExecutor(TOKENIZER_THREADS, thread_name_prefix="tokenizer")
    wake_timeout = WakeTimeout(registry.server.wake_timeout)
    context = NodeContext(executor, stats, progress or (lambda *_: None), warm_up, wake_timeout)
    cards, models = await run_aside(partial(_build_all, planned, outbox, context))
    for card in cards:
        # On a CPU nothing is measured: the plan has told all of it.
        level = logging.DEBUG if card.handle.device.type == "cpu" else logging.INFO
        logger.log(level, "%s", memory_report(card, [model for model in models if model.card is card]))
    order = [spec.name for spec in registry.models]
    models.sort(key=lambda model: order.index(model.info.name))
    return LocalNode(registry, cards, models, context, _watch_compilations(cards, on_compile))


def _placed(registry: Registry) -> Registry:
    """Every model names its card, which a file may leave to the order of the cards. Raises `PlanError` for
    cards that are one device here, whatever the file calls it."""
    cards: dict[torch.device, str] = {}
    for card in registry.cards:
        device = resolve_device(card.device)
        if (other := cards.setdefault(device, card.name)) != card.name:
            raise PlanError(
                f"the cards {other} and {card.name} are the same device here, {device}: "
                f"remove one of them, or write another `device:`"
            )
    models = tuple(replace(model, card=registry.card_of(model).name) for model in registry.models)
    return replace(registry, models=models)


def _watch_compilations(
    cards: Sequence[Card], on_compile: Callable[[str], None] | None
) -> Callable[[], None] | None:
    """Returns what ends the watch."""
    if on_compile is None or all(card.handle.device.type != "cuda" for card in cards):
        return None
    from onecard.kernels.compile_watch import watch_compilations

    return watch_compilations(on_compile).close


def _build_all(
    planned: PlannedNode, outbox: Outbox, context: NodeContext
) -> tuple[list[Card], list[ServedModel]]:
    cards: list[Card] = []
    models: list[ServedModel] = []
    for on_card in planned.cards:
        plan = on_card.plan
        card = _open_card(plan, on_card.spec, outbox, context)
        cards.append(card)
        for blueprint in on_card.blueprints:
            share = plan.model(blueprint.spec.name)
            model = build_served(blueprint, share, card, context)
            card.manager.mover.join(model.card_model)
            if share.awake_at_start:
                card.manager.mover.load_at_start(model.card_model)
            model.card_model.gate.turn("ready" if share.awake_at_start else "unloaded")
            card.manager.add(model.card_model)
            models.append(model)
    return cards, models


def _plan(registry: Registry, spec: CardSpec, paths: dict[str, Path]) -> PlannedCard:
    facts = card_facts(spec)
    if facts.note:
        logger.warning("%s", facts.note)
    blueprints = [read_model(m, paths[m.name], facts) for m in registry.models if m.card == spec.name]
    try:
        plan = plan_card(facts, [blueprint.needs for blueprint in blueprints], spec.page_size)
    except PlanError as error:
        raise PlanError(f"{error} ({facts.note})") if facts.note else error from None
    return PlannedCard(spec, plan, blueprints)


def _open_card(plan: CardPlan, spec: CardSpec, outbox: Outbox, context: NodeContext) -> Card:
    device = torch.device(plan.device)
    arena = DeviceArena(plan.arena_bytes, plan.page_bytes, device)
    pool = PagePool(plan.num_pages, plan.page_bytes)
    pool.keep_for_last({page for model in plan.models for page in model.home})
    clock = step_clock(device)
    turns = FairShare(quantum_of(spec, device.type))
    prepare = partial(_prepare_thread, device)

    def failed(engine: str, error: BaseException) -> None:
        manager.engine_failed(engine, error)

    loop = DeviceLoop(plan.card, outbox, clock, turns, prepare, failed, on_idle=pool.check_integrity)
    manager = LifecycleManager(plan.card, arena, pool, loop)
    planned = plan.arena_bytes + plan.workspace_bytes + plan.graph_bytes
    watch = CardWatch(plan.card, open_monitor(device, logger), planned)
    handle = CardHandle(
        device, arena, pool, loop, clock, graph_backend(device), context.executor, context.stats
    )
    return Card(plan, handle, turns, watch, manager)


def _prepare_thread(device: torch.device) -> None:
    """Settings of the device-loop thread: a CPU card computes on every core this process may use."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
