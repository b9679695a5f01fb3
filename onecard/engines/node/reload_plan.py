"""What a changed registry makes of a card that serves: a pure decision over its plan and its models."""

from collections.abc import Sequence
from dataclasses import dataclass

from onecard.engines.memory.card_plan import CardPlan, ModelNeeds
from onecard.engines.memory.homes import HomeNeed, Settled, pages_for, place_beside
from onecard.engines.memory.plan import replan_card


@dataclass(frozen=True)
class Staying:
    """A model that keeps its home, with what it needs and may have from now on. `awake`: now; whoever comes
    displaces it last."""

    needs: ModelNeeds
    home: range
    awake: bool


def plan_reload(plan: CardPlan, staying: Sequence[Staying], arriving: Sequence[ModelNeeds]) -> CardPlan:
    """The card's plan once these models are on it; those of `plan` that are neither have left it.

    Homes stay where they are; models that arrive get theirs beside them, or over those of models that will
    have to sleep for them. Raises PlanError where that, or what the registry promises, doesn't fit.
    """
    settled = {s.needs.name: Settled(s.home, s.awake, s.needs.pinned) for s in staying}
    wanted = [
        HomeNeed(n.name, pages_for(n.weight_bytes, plan.page_bytes), n.awake_at_start, n.pinned)
        for n in arriving
    ]
    homes = {s.needs.name: s.home for s in staying} | place_beside(settled, wanted, plan.num_pages)
    needs = [*(s.needs for s in staying), *arriving]
    return replan_card(plan, needs, homes, {s.needs.name for s in staying})
