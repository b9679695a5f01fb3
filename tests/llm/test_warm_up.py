"""A language model's first steps where memory is short: a wake doesn't fail for want of them."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from onecard.engines.llm.tenancy import LLMTenancy
from onecard.engines.llm.warm_up import NoRoomError, WarmUp


class ScheduledCore:
    """Steps as a real scheduler decides them, of a model that says nothing. `shortages`: how often in a row
    the next step finds no memory."""

    def __init__(self, world: Any):
        self.name, self.scheduler, self.num_finished = "m", world.scheduler, 3
        self.shortages = self.num_steps = 0
        self._world = world

    def add(self, request: Any) -> None:
        self.scheduler.add(request)

    def abort(self, request: Any) -> None:
        for sequence in request.sequences:
            self.scheduler.finish(sequence)
            self.num_finished += 1

    def has_work(self) -> bool:
        return self.scheduler.has_work()

    def launch(self) -> Any:
        if self.shortages:
            self.shortages -= 1
            return None
        schedule = self.scheduler.schedule(self._world.time)
        return schedule if schedule.items else None

    def collect(self, schedule: Any) -> None:
        self.num_steps += 1
        self._world.read(schedule)
        for item in schedule.items:
            sequence = item.sequence
            if len(sequence.token_ids) - sequence.num_prompt_tokens >= sequence.request.max_tokens:
                self.scheduler.finish(sequence)
                self.num_finished += 1


@pytest.fixture
def core(world: Callable[..., Any]) -> ScheduledCore:
    made = world(num_pages=20)
    made.pages.set_share("m", 0, 20)
    return ScheduledCore(made)


def test_a_shortage_is_not_the_end(core):
    core.shortages = 5
    warm_up = WarmUp(core, 100, 40)
    warm_up.usual_steps()
    warm_up.leave()
    assert core.num_steps > 10
    assert core._world.all_free()
    assert core.num_finished == 3, "its own requests don't count"


def test_without_pages_it_gives_up_and_holds_nothing(core):
    pages = core._world.pages
    pages.claim_home("another", range(20))
    warm_up = WarmUp(core, 100, 40)
    with pytest.raises(NoRoomError):
        warm_up.usual_steps()
    warm_up.leave()
    assert not core.has_work()
    assert core.num_finished == 3
    pages.release_home("another")
    assert core._world.all_free()


def test_a_wake_beside_a_full_cache_succeeds_and_the_next_one_warms_up(core):
    pages, used, model = core._world.pages, [], torch.nn.Identity()
    runner = SimpleNamespace(use=used.append, graphs=SimpleNamespace(capture=lambda told: captured.append(1)))
    captured: list[int] = []
    tenancy = LLMTenancy(core, runner, torch.device("cpu"), 1 << 30, WarmUp(core, 100, 40))
    pages.claim_home("another", range(20))
    tenancy.move_in(model)
    assert (used, captured, core.num_steps) == ([model], [1], 0)
    pages.release_home("another")
    tenancy.move_in(model)
    assert core.num_steps > 10
    steps = core.num_steps
    tenancy.move_in(model)
    assert (captured, core.num_steps) == ([1], steps)
    assert core._world.all_free()
