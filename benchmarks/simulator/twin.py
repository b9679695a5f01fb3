"""The simulated counterpart of a node that was measured: its pages, limits and shares, and its own costs."""

from collections.abc import Mapping, Sequence
from itertools import count

from onecard.engines.memory.card_plan import CardPlan
from onecard.engines.memory.page_pool import PagePool
from onecard.engines.oneshot.queue import TokenBudgetQueue
from onecard.engines.paged.scheduler import SchedulerLimits
from simulator.cards import encoding, linear
from simulator.engines import Share, SimulatedEncoder, SimulatedEngine, SimulatedLLM
from simulator.scenarios import Outcome, run
from simulator.workloads import Arrival

Coefficients = tuple[float, float, float, float]


def predict(
    plan: CardPlan,
    limits: SchedulerLimits,
    encoder_tokens: int,
    costs: Mapping[str, Coefficients],
    arrivals: Sequence[Arrival],
    quantum: float,
) -> Outcome:
    """What serving `arrivals` should come to. Homes of weights are no part of the simulated arena."""
    ticks = count()
    kv_pages = plan.num_pages - sum(model.home_pages for model in plan.models)
    pool = PagePool(kv_pages, plan.page_bytes, clock=lambda: next(ticks))
    engines: list[SimulatedEngine] = []
    for model in plan.models:
        if model.block_bytes is None:
            seconds = encoding(*costs[model.name])
            engines.append(SimulatedEncoder(model.name, seconds, TokenBudgetQueue(encoder_tokens, 1 << 20)))
            continue
        share = Share(model.floor_pages, min(model.ceiling_pages, kv_pages))
        engines.append(
            SimulatedLLM(
                model.name,
                pool,
                share,
                model.block_bytes,
                linear(*costs[model.name]),
                limits,
                block_size=model.block_size,
                caching=True,
            )
        )
    return run(engines, arrivals, quantum)
