"""A language model's first steps where memory is short: a wake doesn't fail for want of them."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from onecard.engines.paged.practice import LONGEST_PROMPT, PagedPractice
from onecard.engines.runtime.step_budget import BRIEF_STEP_SECONDS
from onecard.engines.step.hooks import EngineHooks
from onecard.engines.step.warm_up import NoPagesError, WarmUp


class ScheduledCore:
    """Steps as a real scheduler decides them, of a model that says nothing. `shortages`: how often in a row
    the next step finds no memory."""

    def __init__(self, world: Any):
        self.name, self.scheduler, self.num_finished = "m", world.scheduler, 3
        self.shortages = self.num_steps = 0
        self.used: list[Any] = []
        self.graphs: Any = None
        self._world = world

    def add(self, request: Any) -> None:
        self.scheduler.add(request)

    def abort(self, request: Any) -> None:
        for sequence in request.sequences:
            self.scheduler.finish(sequence)
            self.num_finished += 1

    def use(self, model: Any) -> None:
        self.used.append(model)

    def rest(self) -> None:
        self.scheduler.kv.pool.reset_prefix_cache()
        self.scheduler.kv.pool.release_idle_pages()

    def has_unfinished(self) -> bool:
        return self.scheduler.has_work()

    def launch(self, seconds: float | None = None) -> Any:
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


def warm_up_of(core: ScheduledCore, max_model_len: int = 40, brief: bool = False) -> WarmUp:
    practice = PagedPractice(core.scheduler, 100, max_model_len, brief)
    return WarmUp(cast(Any, core), practice, brief)


def hooks_of(core: ScheduledCore, graphs: Any, *told: Any) -> EngineHooks:
    core.graphs = graphs
    return EngineHooks(cast(Any, core), torch.device("cpu"), 1 << 30, warm_up_of(core), *told)


def all_of(steps: Iterable[None]) -> int:
    """Goes through them; returns how many they were."""
    return sum(1 for _ in steps)


@pytest.fixture
def core(world: Callable[..., Any]) -> ScheduledCore:
    made = world(num_pages=20)
    made.pages.set_share("m", 0, 20)
    return ScheduledCore(made)


def test_a_shortage_is_not_the_end(core):
    core.shortages = 5
    warm_up = warm_up_of(core)
    all_of(warm_up.usual_steps())
    core.rest()
    assert core.num_steps > 10
    assert core._world.all_free()
    assert core.num_finished == 3, "its own requests don't count"


def test_without_pages_it_gives_up_and_holds_nothing(core):
    pages = core._world.pages
    pages.claim_home("another", range(20))
    warm_up = warm_up_of(core)
    with pytest.raises(NoPagesError):
        all_of(warm_up.usual_steps())
    core.rest()
    assert not core.has_unfinished()
    assert core.num_finished == 3
    pages.release_home("another")
    assert core._world.all_free()


def test_a_wake_beside_a_full_cache_succeeds_and_the_next_one_warms_up(core):
    pages, model = core._world.pages, torch.nn.Identity()
    captured: list[int] = []
    hooks = hooks_of(core, SimpleNamespace(sizes=[1], capture=captured.append))
    pages.claim_home("another", range(20))
    all_of(hooks.move_in(model))
    assert (core.used, captured, core.num_steps) == ([model], [1], 0)
    pages.release_home("another")
    all_of(hooks.move_in(model))
    assert core.num_steps > 10
    steps = core.num_steps
    all_of(hooks.move_in(model))
    assert (captured, core.num_steps) == ([1], steps)
    assert core._world.all_free()


def test_each_graph_and_each_step_is_a_piece_of_its_own(core):
    captured, told = list[int](), list[tuple[int, int]]()
    graphs = SimpleNamespace(sizes=[1, 2, 4], capture=captured.append)
    hooks = hooks_of(core, graphs, lambda *done: told.append(done))
    for pieces, _ in enumerate(hooks.move_in(torch.nn.Identity()), start=1):
        assert core.num_steps + len(captured) == pieces
    assert captured == [4, 2, 1]
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_one_that_is_broken_off_holds_nothing(core):
    steps = warm_up_of(core).usual_steps()
    next(steps)
    assert core.warming
    steps.close()
    assert not core.warming
    assert not core.scheduler.has_work()
    core.scheduler.kv.pool.reset_prefix_cache()
    core.scheduler.kv.pool.release_idle_pages()
    assert core._world.all_free()


def test_a_brief_one_keeps_to_short_steps(core):
    """On a CPU long prompts would keep others waiting, and there is nothing to compile."""
    core.scheduler.limits = replace(core.scheduler.limits, max_num_batched_tokens=1000)
    asked: list[float | None] = []
    launch = core.launch
    core.launch = lambda seconds=None: asked.append(seconds) or launch(seconds)
    longest = 0
    for _ in warm_up_of(core, 1000, brief=True).usual_steps():
        longest = max([longest, *(s.num_prompt_tokens for s in core.scheduler.running)])
    assert (longest, set(asked)) == (LONGEST_PROMPT, {BRIEF_STEP_SECONDS})


@pytest.mark.parametrize("longest", [2, 3, 7, 8])
def test_no_request_of_it_is_longer_than_the_longest_text(core, longest):
    practice = PagedPractice(core.scheduler, 100, longest, brief=True)
    waves = [practice.largest(), *practice.usual()]
    requests = [request for step in waves for wave in step for request in wave]
    assert len(requests) > 3
    assert all(len(r.prompt_token_ids) + r.max_tokens <= longest for r in requests)
