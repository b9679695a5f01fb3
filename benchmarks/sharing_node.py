"""A real node for `sharing.py`: three language models and an embedding model in process, served arrivals."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Literal

from simulator.results import Served
from simulator.workloads import Arrival

from onecard.engines.api import EmbedRequest, GenerateRequest, RequestStats, SamplingParams, StepStats
from onecard.engines.memory.card_plan import CardPlan
from onecard.engines.memory.plan_checks import SLACK_SHARE
from onecard.engines.node.factory import plan_registry, start_node
from onecard.engines.node.local_node import LocalNode
from onecard.engines.paged.core import PagedCore
from onecard.engines.paged.request import Sequence as Answer
from onecard.registry.spec import CardSpec, EngineSpec, MemoryAmount, ModelSpec, Registry

Split = Literal["elastic", "static"]

BLOCK_SIZE = 16
PAGE_BLOCKS = 2
MAX_MODEL_LEN = 256
MAX_SEQS, MAX_BATCHED_TOKENS = 32, 512
VOCABULARY = range(110, 500)
"""Ordinary tokens of any model."""

_ROOMY = MemoryAmount(nbytes=4 << 30)
_ENGINE = EngineSpec(
    max_model_len=MAX_MODEL_LEN, max_num_seqs=MAX_SEQS, max_num_batched_tokens=MAX_BATCHED_TOKENS
)


@dataclass
class _HostTime:
    """Implements `api.StatsSink`: what steps take beside computing, by model."""

    steps: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)

    def record_step(self, stats: StepStats) -> None:
        self.steps[stats.model] += 1
        self.seconds[stats.model] += stats.host_seconds

    def record_request(self, stats: RequestStats) -> None: ...


def plan_node(
    paths: dict[str, Path], split: Split, third_tokens: int, quantum: float | None
) -> tuple[Registry, CardPlan]:
    """A registry whose arena holds `third_tokens` tokens of KV for each language model, and its plan.

    `paths`: the embedding model comes last. Elastic: half of a model's part is guaranteed, all is allowed.
    """
    *chats, embedder = paths
    models = [ModelSpec(name=name, kind="llm", source=str(paths[name]), engine=_ENGINE) for name in chats]
    encoder = ModelSpec(name=embedder, kind="embedding", source=str(paths[embedder]))
    registry = Registry(cards=(CardSpec(memory=_ROOMY, quantum=quantum),), models=(*models, encoder))
    block = _plan(registry, paths).model(chats[0]).block_bytes
    assert block is not None
    registry = _with_card(registry, page_size=PAGE_BLOCKS * block)
    plan = _plan(registry, paths)
    third = -(-third_tokens // (PAGE_BLOCKS * BLOCK_SIZE))
    wanted = sum(model.home_pages for model in plan.models) + third * len(chats)
    surplus = (plan.num_pages - wanted) * plan.page_bytes * SLACK_SHARE // (SLACK_SHARE - 1)
    registry = _with_card(registry, memory=MemoryAmount(nbytes=plan.budget_bytes - surplus))
    floor = third if split == "static" else third // 2
    shared = [_with_share(model, plan, floor, split) for model in models]
    registry = replace(registry, models=(*shared, encoder))
    return registry, _plan(registry, paths)


def _plan(registry: Registry, paths: dict[str, Path]) -> CardPlan:
    return plan_registry(registry, paths)[0]


def _with_card(registry: Registry, **changes: Any) -> Registry:
    return replace(registry, cards=(replace(registry.cards[0], **changes),))


def _with_share(model: ModelSpec, plan: CardPlan, floor_pages: int, split: Split) -> ModelSpec:
    pages = plan.model(model.name).home_pages + floor_pages
    floor = MemoryAmount(nbytes=pages * plan.page_bytes)
    return replace(model, memory=floor, burst=floor if split == "static" else model.burst)


@dataclass
class Run:
    """What became of a workload."""

    served: list[Served]
    preempted_tokens: int


class SharingNode:
    """Start it with `async with`; all on one event loop."""

    def __init__(self, registry: Registry, paths: dict[str, Path]) -> None:
        self._registry, self._paths = registry, paths
        self._host_time = _HostTime()
        self._ids = map(str, count())
        self._random = Random(0)
        self._preempted_tokens = 0

    async def __aenter__(self) -> "SharingNode":
        self._node: LocalNode = await start_node(self._registry, self._paths, self._host_time)
        for model in self._registry.models:
            core = self._core(model.name)
            if isinstance(core, PagedCore):
                self._count_preemptions(core)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._node.stop()

    async def serve(self, arrivals: Sequence[Arrival]) -> Run:
        """Sends every request at its time and waits for all answers."""
        self._preempted_tokens = 0
        started = time.perf_counter()
        served = await asyncio.gather(*(self._serve_one(arrival, started) for arrival in arrivals))
        return Run(list(served), self._preempted_tokens)

    def costs(self) -> dict[str, tuple[float, float, float, float]]:
        """What each engine has learnt that its steps take, and the host's time besides, by model."""
        learnt = {}
        for model in self._registry.models:
            coefficients = self._core(model.name)._budget.cost.coefficients
            if coefficients is not None:
                host = self._host_time.seconds[model.name] / max(self._host_time.steps[model.name], 1)
                a, b, c, d = coefficients
                learnt[model.name] = a + host, b, c, d
        return learnt

    def _core(self, name: str) -> Any:
        return self._node.engine(name).core  # type: ignore[union-attr]

    def _count_preemptions(self, core: PagedCore) -> None:
        """On the device loop's thread; nobody else writes the count."""
        preempt = core.scheduler.preempt

        def counted(sequence: Answer) -> None:
            self._preempted_tokens += sequence.num_tokens
            preempt(sequence)

        core.scheduler.preempt = counted  # type: ignore[method-assign]

    async def _serve_one(self, arrival: Arrival, started: float) -> Served:
        await asyncio.sleep(started + arrival.time - time.perf_counter())
        served = Served(arrival)
        texts = tuple(tuple(self._random.choices(VOCABULARY, k=length)) for length in arrival.lengths)
        engine: Any = self._node.engine(arrival.model)
        if arrival.output_tokens:
            sampling = SamplingParams(temperature=0.0, max_tokens=arrival.output_tokens, ignore_eos=True)
            request = GenerateRequest(next(self._ids), texts[0], sampling, priority=arrival.priority)
            async for chunk in await engine.generate(request):
                served.times += [time.perf_counter() - started] * len(chunk.token_ids)
        else:
            await engine.embed(EmbedRequest(next(self._ids), texts))
            served.times.append(time.perf_counter() - started)
        served.finished = True
        return served
