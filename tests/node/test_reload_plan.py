from collections.abc import Container
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onecard.engines.memory.card_plan import CardFacts, CardPlan, ModelNeeds, PlanError
from onecard.engines.memory.homes import Resident, can_be_awake, overlaps, place_beside
from onecard.engines.memory.plan import plan_card, replan_card

MIB = 1 << 20
PAGE = MIB
CARD = CardFacts("card0", "cpu", 256 * MIB, 200 * MIB, 100 * MIB)


def need(name: str, weights: int, floor: int = 0, ceiling: int = 1000, **more: object) -> ModelNeeds:
    """Sizes in MiB; a block is 64 KiB for 16 tokens."""
    fields = {
        "name": name,
        "kind": "llm",
        "home_bytes": weights * MIB,
        "packed_bytes": 0,
        "workspace_bytes": 4 * MIB,
        "block_bytes": 64 << 10,
        "block_size": 16,
        "max_model_len": 256,
        "floor": floor * MIB,
        "ceiling": ceiling * MIB,
    }
    return ModelNeeds(**{**fields, **more})


def opened(*needs: ModelNeeds) -> CardPlan:
    return plan_card(CARD, needs, PAGE)


Staying = tuple[ModelNeeds, Resident]


def staying(plan: CardPlan, *needs: ModelNeeds, asleep: Container[str] = "") -> list[Staying]:
    return [(n, Resident(n.name, plan.model(n.name).home, n.name not in asleep)) for n in needs]


def plan_reload(plan: CardPlan, stay: list[Staying], come: list[ModelNeeds]) -> CardPlan:
    return replan_card(plan, [model for _, model in stay], [*(need for need, _ in stay), *come])


def test_who_stays_keeps_its_home_and_who_comes_gets_one_beside():
    a, b = need("a", 20), need("b", 30)
    plan = opened(a, b)
    after = plan_reload(plan, staying(plan, b), [need("c", 10), need("d", 20)])
    assert after.model("b").home == plan.model("b").home == range(20, 50)
    assert after.model("d").home == range(20)  # the larger one first: where `a` was
    assert after.model("c").home == range(50, 60)
    assert (after.arena_bytes, after.page_bytes) == (plan.arena_bytes, plan.page_bytes)


def test_who_finds_no_free_place_lies_over_those_that_sleep():
    a, b = need("a", 40), need("b", 40)
    plan = opened(a, b)
    after = plan_reload(plan, staying(plan, a, b, asleep="b"), [need("c", 30)])
    assert overlaps(after.model("c").home, after.model("b").home)
    assert not overlaps(after.model("c").home, after.model("a").home)


def test_a_pinned_home_is_never_overlapped():
    a, b = need("a", 40, pinned=True), need("b", 40)
    plan = opened(a, b)
    after = plan_reload(plan, staying(plan, a, b), [need("c", 50)])
    assert not overlaps(after.model("c").home, after.model("a").home)
    with pytest.raises(PlanError, match="takes 60 pages in a row"):
        plan_reload(plan, staying(plan, a, b), [need("c", 60)])
    with pytest.raises(PlanError, match="beside any other model's home"):
        plan_reload(plan, staying(plan, a, b), [need("c", 30, pinned=True)])


def test_pinning_a_model_whose_home_others_share_is_refused():
    a, b = need("a", 60), need("b", 60, preload=False)
    plan = opened(a, b)
    with pytest.raises(PlanError, match=r"a can't be `pinned:` now: .* b belong"):
        plan_reload(plan, staying(plan, replace(a, pinned=True), b, asleep="b"), [])


@pytest.mark.parametrize("asleep", ["", "a", "b", "ab"])
def test_floors_of_those_that_start_awake_must_fit_and_the_message_has_the_numbers(asleep: str):
    """Whoever sleeps at the moment: the file is refused or taken for what it says."""
    a, b = need("a", 20, floor=40), need("b", 20, floor=40)
    plan = opened(a, b)
    larger = replace(a, floor=80 * MIB)
    with pytest.raises(PlanError, match=r"60MiB \(a\) \+ 20MiB \(b\) of KV cache, but"):
        plan_reload(plan, staying(plan, larger, b, asleep=asleep), [])
    lazy = replace(b, preload=False)
    after = plan_reload(plan, staying(plan, larger, lazy, asleep=asleep), [])
    assert after.model("a").floor_pages == 60


def test_the_longest_request_of_those_that_start_awake_must_fit():
    a, b = need("a", 40), need("b", 40, max_model_len=4096, preload=False)
    plan = opened(a, b)
    with pytest.raises(PlanError, match=r"b: one request .* 16 pages .* and those of a it can have 14 \("):
        plan_reload(plan, staying(plan, a, replace(b, preload=True), asleep="b"), [])
    with pytest.raises(PlanError, match=r"b: one request .* 16 pages .* and those of a it can have 14 \("):
        plan_reload(plan, staying(plan, replace(a, pinned=True), b, asleep="b"), [])
    shorter = replace(b, preload=True, max_model_len=14 * 256)
    assert plan_reload(plan, staying(plan, a, shorter), []).model("b").awake_at_start


def test_models_that_overlap_cant_all_start_awake():
    a, b = need("a", 60), need("b", 60, preload=False)
    plan = opened(a, b)
    with pytest.raises(PlanError, match=r"a, b can't be awake together: .* 120MiB of 94MiB: let some start"):
        plan_reload(plan, staying(plan, a, replace(b, preload=True), asleep="b"), [])


def test_who_takes_turns_already_may_go_on():
    """More than fits has come; a later file that changes next to nothing isn't refused for that."""
    a, b = need("a", 20, floor=60), need("b", 20, floor=60)
    plan = plan_reload(opened(a), staying(opened(a), a), [b])
    assert sum(m.home_pages + m.floor_pages for m in plan.models) > plan.num_pages
    assert plan_reload(plan, staying(plan, a, b, asleep="b"), []) == plan
    assert plan_reload(plan, staying(plan, replace(a, ceiling=90 * MIB), b), []).model("b").floor_pages == 40


def test_workspace_and_graphs_must_fit_what_is_beside_the_arena():
    a = need("a", 20, graph_bytes=6 * MIB)
    plan = opened(a)
    too_large = need("b", 20, workspace_bytes=14 * MIB)
    with pytest.raises(
        PlanError, match=r"workspace \(14MiB, b\) and graphs \(6MiB\) take 20MiB, but .* has 1"
    ):
        plan_reload(plan, staying(plan, a), [too_large])
    other = plan_reload(plan, [], [replace(too_large, workspace_bytes=9 * MIB)])
    assert (other.workspace_bytes, other.graph_bytes) == (9 * MIB, 0)
    assert plan_reload(other, [], [a]) == plan  # nothing is lost on the way


def test_blocks_must_fit_the_pages():
    plan = opened(need("a", 20))
    with pytest.raises(PlanError, match="doesn't always hold a whole block of b"):
        plan_reload(plan, [], [need("b", 20, block_bytes=3 * MIB)])


def test_a_ceiling_below_the_longest_request_is_refused():
    a = need("a", 20)
    plan = opened(a)
    with pytest.raises(PlanError, match="one request of max_model_len 256 needs 1 page of"):
        plan_reload(plan, staying(plan, replace(a, ceiling=20 * MIB)), [])


def test_the_terms_of_a_new_plan_add_up_to_the_card():
    a, b = need("a", 20, floor=30, graph_bytes=MIB), need("b", 30)
    plan = opened(a, b)
    after = plan_reload(plan, staying(plan, a), [need("c", 25)])
    given = after.arena_bytes + after.workspace_bytes + after.graph_bytes + after.slack_bytes
    assert after.other_bytes + given + after.unused_bytes == CARD.total_bytes


sizes = st.integers(0, 60)
models = st.lists(st.tuples(sizes, st.booleans(), st.booleans()), min_size=1, max_size=5)


@given(models, models)
def test_places_beside_others_keep_their_promises(old: list, new: list):
    """Whatever is placed: inside the arena, never over a pinned home, pinned ones over nobody."""
    num_pages, cursor, settled = 100, 0, {}
    for i, (pages, awake, pinned) in enumerate(old):
        if pinned and cursor + pages > num_pages:
            continue
        start = cursor if cursor + pages <= num_pages else num_pages - pages
        if any(s.pinned and overlaps(range(start, start + pages), s.home) for s in settled.values()):
            continue
        settled[f"old{i}"] = Resident(f"old{i}", range(start, start + pages), awake, pinned)
        cursor = max(cursor, start + pages)
    wanted = [Resident(f"new{i}", range(pages), *rest) for i, (pages, *rest) in enumerate(new)]
    try:
        placed = place_beside(settled.values(), wanted, num_pages)
    except PlanError:
        return
    everyone = {name: model.home for name, model in settled.items()} | placed
    pinned_old = {name for name, model in settled.items() if model.pinned}
    for one in wanted:
        home = placed[one.name]
        assert len(home) == len(one.home)
        assert 0 <= home.start <= home.stop <= num_pages
        for name, other in everyone.items():
            if name != one.name and (name in pinned_old or one.pinned) and home and other:
                assert not overlaps(home, other)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30), st.booleans()), min_size=1, max_size=4))
def test_an_accepted_reload_keeps_what_those_awake_are_promised(arriving: list):
    a, b = need("a", 20, floor=30), need("b", 20, floor=25, pinned=True)
    plan = opened(a, b)
    coming = [
        need(f"new{i}", weights, floor=floor and weights + floor, pinned=pinned)
        for i, (weights, floor, pinned) in enumerate(arriving)
    ]
    try:
        after = plan_reload(plan, staying(plan, a, b), coming)
    except PlanError:
        return

    pinned = [m.name for m in after.models if m.pinned]
    assert can_be_awake([after.model("a"), after.model("b")], plan.num_pages)
    for model in after.models:
        assert can_be_awake([after.model(n) for n in {*pinned, model.name}], plan.num_pages)


lives = st.lists(
    st.tuples(st.integers(5, 30), st.integers(0, 40), st.booleans(), st.booleans()), min_size=1, max_size=4
)


def drawn(life: list, prefix: str) -> list[ModelNeeds]:
    return [
        need(
            f"{prefix}{i}", weights, floor=floor and weights + floor, preload=preload or pinned, pinned=pinned
        )
        for i, (weights, floor, preload, pinned) in enumerate(life)
    ]


def judged(plan: CardPlan, stay: list[Staying], come: list[ModelNeeds]) -> str | None:
    try:
        plan_reload(plan, stay, come)
    except PlanError as error:
        return str(error)
    return None


@given(
    lives, st.lists(st.integers(0, 60), min_size=4, max_size=4), lives, st.lists(st.booleans(), max_size=4)
)
def test_who_sleeps_at_the_moment_does_not_count(old: list, floors: list, new: list, asleep: list):
    needs = drawn(old, "old")
    try:
        plan = opened(*needs)
    except PlanError:
        return
    sleeping = [n.name for n, sleeps in zip(needs, asleep) if sleeps and not n.pinned]
    assert judged(plan, staying(plan, *needs, asleep=sleeping), []) is None, "what is served goes on"
    changed = [replace(n, floor=(f and f * MIB + n.weight_bytes)) for n, f in zip(needs, floors)]
    verdicts = {
        judged(plan, staying(plan, *changed, asleep=who), drawn(new, "new"))
        for who in ([], sleeping, [n.name for n in needs])
    }
    assert len(verdicts) == 1
