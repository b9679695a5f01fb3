"""The card's plan: what adds up, and every way in which it can't."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onecard.engines.memory.card_plan import CardFacts, CardPlan, ModelNeeds, PlanError
from onecard.engines.memory.homes import can_be_awake
from onecard.engines.memory.plan import plan_card
from onecard.engines.memory.plan_checks import at_least

MIB = 1 << 20
FACTS = CardFacts("card0", "cpu", total_bytes=4096 * MIB, available_bytes=3500 * MIB, budget_bytes=2048 * MIB)
LLM = ModelNeeds(
    "smollm2", "llm", 150 * MIB, 120 * MIB, 100 * MIB, 720 * 1024, 16, 4096, 1024 * MIB, 4096 * MIB
)
ENCODER = ModelNeeds("minilm", "embedding", 90 * MIB, 0, 50 * MIB, None, 16, 512, 0, 4096 * MIB)


def all_bytes(plan: CardPlan) -> int:
    """What the parts of a plan come to: the card."""
    given = plan.arena_bytes + plan.workspace_bytes + plan.graph_bytes + plan.slack_bytes
    return plan.other_bytes + given + plan.unused_bytes


def refuse(*needs: ModelNeeds, facts: CardFacts = FACTS, page_bytes: int | None = None) -> str:
    with pytest.raises(PlanError) as error:
        plan_card(facts, needs, page_bytes)
    return str(error.value)


def test_the_terms_add_up():
    plan = plan_card(FACTS, [replace(LLM, graph_bytes=30 * MIB), replace(ENCODER, graph_bytes=3 * MIB)])
    assert all_bytes(plan) == FACTS.total_bytes
    assert plan.arena_bytes == plan.num_pages * plan.page_bytes
    outside = plan.workspace_bytes + plan.graph_bytes + plan.slack_bytes
    assert outside + plan.arena_bytes == FACTS.budget_bytes
    assert (plan.weight_bytes, plan.workspace_bytes, plan.other_bytes) == (360 * MIB, 100 * MIB, 596 * MIB)
    assert plan.graph_bytes == 33 * MIB
    assert FACTS.budget_bytes // 64 <= plan.slack_bytes < FACTS.budget_bytes // 64 + plan.page_bytes
    home = plan.model("smollm2").home_pages * plan.page_bytes
    assert 270 * MIB <= home < 270 * MIB + plan.page_bytes
    claimed = sum(m.home_pages + m.floor_pages for m in plan.models)
    assert plan.loanable_bytes == plan.arena_bytes - claimed * plan.page_bytes


def test_a_models_pages_are_its_home_and_floor_and_ceiling_less_its_home():
    plan = plan_card(FACTS, [LLM, ENCODER], page_bytes=4 * MIB, slack_bytes=0)
    llm, encoder = plan.model("smollm2"), plan.model("minilm")
    assert plan.num_pages == (2048 - 100) // 4
    assert (llm.home, encoder.home) == (range(68), range(68, 68 + 23))
    assert llm.floor_pages == 1024 // 4 - 68
    assert llm.ceiling_pages == plan.num_pages - 68
    assert plan_card(FACTS, [replace(LLM, ceiling=1200 * MIB)], 4 * MIB).model("smollm2").ceiling_pages == 232
    # A page of 4 MiB holds 4 or 5 blocks of 720 KiB on the arena's grid; 4 are sure.
    assert (llm.blocks_per_page, llm.kv_tokens_floor) == (4, llm.floor_pages * 4 * 16)
    assert llm.kv_tokens_ceiling == llm.ceiling_pages * 4 * 16
    assert 0 < llm.waste == plan.waste < 0.25
    assert (encoder.floor_pages, encoder.ceiling_pages, encoder.kv_tokens_ceiling) == (0, 0, 0)
    assert plan.loanable_bytes == (plan.num_pages - 68 - 23 - llm.floor_pages) * 4 * MIB


def test_pinned_homes_bound_every_ceiling():
    pinned = replace(LLM, name="pinned", pinned=True, floor=0)
    plan = plan_card(FACTS, [pinned, replace(LLM, floor=0)], 4 * MIB, slack_bytes=0)
    assert plan.model("pinned").ceiling_pages == plan.num_pages - 68
    assert plan.model("smollm2").ceiling_pages == plan.num_pages - 68 - 68


def test_models_that_start_asleep_overlap_and_the_notes_say_whom():
    large = [replace(LLM, name=name, home_bytes=780 * MIB, floor=0) for name in ("a", "b", "c")]
    plan = plan_card(FACTS, [large[0], *(replace(n, preload=False) for n in large[1:])], 4 * MIB)
    a, b, c = (plan.model(name).home for name in "abc")
    assert set(a).isdisjoint(b)
    assert a.start == 0
    assert set(c) & set(b)
    assert set(c).isdisjoint(a)
    assert "b starts asleep; while it is awake, c must sleep: their homes overlap" in plan.notes
    assert "c starts asleep; while it is awake, b must sleep: their homes overlap" in plan.notes
    assert all_bytes(plan) == FACTS.total_bytes
    assert plan.loanable_bytes == (plan.num_pages - 225) * 4 * MIB


def test_the_notes_say_whose_floors_don_t_fit_together():
    a, b = (replace(LLM, name=name, home_bytes=270 * MIB, floor=1000 * MIB) for name in "ab")
    sleeper = replace(b, preload=False)
    note = "b starts asleep; while it is awake, a can't be: their floors and its own don't fit together"
    assert note in plan_card(FACTS, [a, sleeper], 4 * MIB).notes
    assert note not in plan_card(FACTS, [a, replace(sleeper, floor=800 * MIB)], 4 * MIB).notes


def test_the_notes_say_whose_longest_request_would_find_no_room():
    a, b = (replace(LLM, name=name, home_bytes=780 * MIB, floor=0) for name in "ab")
    sleeper = replace(b, preload=False)
    note = (
        "b starts asleep; while it is awake, a can't be: their weights would leave 29 pages, and a request "
        "of max_model_len 4096 to b takes 64"
    )
    assert note in plan_card(FACTS, [a, sleeper], 4 * MIB).notes
    shorter = [replace(n, max_model_len=1856) for n in (a, sleeper)]
    assert not any("starts asleep" in note for note in plan_card(FACTS, shorter, 4 * MIB).notes)


def test_a_pinned_models_longest_request_that_a_waking_one_would_leave_no_room_for():
    """It couldn't be kept once that one is awake, and the pinned one never sleeps."""
    pinned, sleeper = (
        replace(LLM, floor=0, pinned=True),
        replace(ENCODER, home_bytes=1400 * MIB, preload=False),
    )
    message = refuse(pinned, sleeper, page_bytes=4 * MIB)
    assert (
        "smollm2: one request of max_model_len 4096 needs 64 pages of 4MiB, but beyond its weights" in message
    )
    assert "of 270MiB and those of minilm it can have 61 (3904 tokens) on card0" in message
    fits = int(message.split("`max_model_len:` to at most ")[1].split()[0])
    assert plan_card(FACTS, [replace(pinned, max_model_len=fits), sleeper], 4 * MIB)
    assert plan_card(FACTS, [replace(pinned, pinned=False), sleeper], 4 * MIB)
    more = int(message.split("raise the card's `memory:` by at least ")[1].removesuffix("MiB")) * MIB
    assert plan_card(replace(FACTS, budget_bytes=FACTS.budget_bytes + more), [pinned, sleeper], 4 * MIB)


@given(
    st.lists(
        st.tuples(st.integers(1, 900), st.integers(0, 300), st.booleans(), st.booleans(), st.booleans()),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from([None, 4 * MIB, 5_000_000, 64 * MIB]),
)
def test_a_plan_that_stands_can_be_kept(specs, page_bytes):
    needs = [
        replace(
            LLM if paged else ENCODER,
            name=f"m{i}",
            home_bytes=mib * MIB,
            packed_bytes=0,
            floor=(mib + extra) * MIB,
            pinned=pinned,
            preload=preload,
        )
        for i, (mib, extra, pinned, preload, paged) in enumerate(specs)
    ]
    try:
        plan = plan_card(FACTS, needs, page_bytes)
    except PlanError:
        return
    assert all_bytes(plan) == FACTS.total_bytes
    residents = {m.name: m for m in plan.models}
    assert can_be_awake([residents[m.name] for m in plan.models if m.awake_at_start], plan.num_pages)
    for model, need in zip(plan.models, needs, strict=True):
        assert model.home_pages * plan.page_bytes >= need.weight_bytes
        kept = [residents[m.name] for m in plan.models if m.pinned or m is model]
        assert can_be_awake(kept, plan.num_pages)
        if need.block_bytes:
            promised = (model.floor_pages + model.home_pages) * plan.page_bytes
            assert promised > need.floor - plan.page_bytes
            assert promised <= max(need.floor, model.home_pages * plan.page_bytes)
            lent = plan.num_pages - sum(len(r.home) for r in kept)
            assert model.ceiling_pages <= lent


def test_without_a_page_size_none_is_lost_at_edges():
    assert plan_card(FACTS, [LLM]).waste == 0


def test_no_floor_is_no_guarantee_and_says_so():
    plan = plan_card(FACTS, [replace(LLM, floor=0)])
    assert plan.model("smollm2").floor_pages == 0
    assert plan.notes == (
        "smollm2: 0 tokens of KV cache are guaranteed; a request of max_model_len 4096 needs borrowed memory"
        ", and waits while other models use theirs",
    )
    assert plan_card(FACTS, [LLM]).notes == ()


def test_encoders_alone_have_homes_and_lose_nothing_at_page_edges():
    plan = plan_card(FACTS, [ENCODER])
    assert (plan.page_bytes, plan.model("minilm").home_pages, plan.waste) == (MIB, 90, 0.0)
    assert all_bytes(plan) == FACTS.total_bytes


def test_the_plan_is_json():
    plan = plan_card(FACTS, [LLM, ENCODER])
    data = json.loads(json.dumps(plan.as_dict()))
    assert data["models"][0]["name"] == "smollm2"
    assert data["unused_bytes"] == FACTS.available_bytes - FACTS.budget_bytes


def test_weights_over_the_budget():
    message = refuse(replace(LLM, home_bytes=1780 * MIB, floor=0), ENCODER)
    assert "1.86GiB (smollm2) + 90MiB (minilm)" in message
    assert "74MiB more than the card's budget of 2GiB (of 4GiB, 3.42GiB available)" in message
    assert "raise the card's `memory:`, let models start asleep (`preload: false`)" in message
    assert plan_card(FACTS, [replace(LLM, home_bytes=1600 * MIB, floor=0), replace(ENCODER, preload=False)])


def test_weights_that_no_sleep_of_others_makes_room_for():
    large = replace(LLM, name="large", home_bytes=1780 * MIB, floor=0, preload=False)
    assert plan_card(FACTS, [replace(ENCODER, pinned=False), replace(large, home_bytes=1600 * MIB)])
    message = refuse(replace(ENCODER, pinned=True), large)
    assert "the weights take 90MiB (minilm) + 1.86GiB (large), workspace, graphs and slack 132MiB" in message


def test_homes_that_fit_in_bytes_but_not_in_pages():
    message = refuse(
        *(replace(ENCODER, name=f"e{i}", home_bytes=330 * MIB) for i in range(5)), page_bytes=200 * MIB
    )
    assert "in pages of 200MiB, the homes of e0, e1, e2, e3, e4 take 10 pages of 9" in message
    assert "set a smaller `page_size:`" in message


def test_floors_that_a_model_asleep_is_promised_beside_the_pinned():
    pinned = replace(LLM, name="pinned", pinned=True)
    asleep = replace(LLM, preload=False, floor=1000 * MIB)
    assert "754MiB (pinned) + 730MiB (smollm2)" in refuse(pinned, asleep, page_bytes=2 * MIB)
    assert plan_card(FACTS, [replace(pinned, pinned=False), asleep], 2 * MIB)


def test_weights_over_the_floor():
    message = refuse(replace(LLM, floor=200 * MIB))
    assert "smollm2 needs 270MiB for its weights alone, but its floor is 200MiB" in message
    assert "set `memory:` to at least 270MiB, or to 0" in message


def test_floor_over_ceiling():
    message = refuse(replace(LLM, ceiling=512 * MIB))
    assert message.startswith("smollm2: its floor of 1GiB is above its ceiling of 512MiB")
    assert "`burst:` to at least 1024MiB" in message


def test_floors_over_the_card():
    other = replace(LLM, name="qwen", floor=1400 * MIB)
    message = refuse(LLM, other, page_bytes=8 * MIB)
    assert "752MiB (smollm2) + 1.1GiB (qwen)" in message
    lower_by = int(message.split("by ")[1].split("MiB")[0])
    assert plan_card(FACTS, [LLM, replace(other, floor=other.floor - lower_by * MIB)], 8 * MIB)


def test_the_longest_request_over_the_ceiling_names_the_length_that_fits():
    message = refuse(replace(LLM, floor=0, ceiling=350 * MIB))
    assert "one request of max_model_len 4096" in message
    fits = int(message.split("`max_model_len:` to at most ")[1].split()[0])
    assert plan_card(FACTS, [replace(LLM, floor=0, ceiling=350 * MIB, max_model_len=fits)])
    enough = int(message.split("`burst:` to at least ")[1].removesuffix("MiB")) * MIB
    assert plan_card(FACTS, [replace(LLM, floor=0, ceiling=enough)])


@pytest.mark.parametrize("page_bytes", [4 * MIB, 7200 * 1024, 32 * MIB])
def test_the_longest_request_over_the_card_names_what_the_card_must_give(page_bytes):
    small, llm = replace(FACTS, budget_bytes=450 * MIB), replace(LLM, floor=0)
    message = refuse(llm, facts=small, page_bytes=page_bytes)
    more = int(message.split("raise the card's `memory:` by at least ")[1].removesuffix("MiB")) * MIB
    assert plan_card(replace(small, budget_bytes=small.budget_bytes + more), [llm], page_bytes)


def test_a_ceiling_below_the_weights_leaves_no_length_to_name():
    message = refuse(replace(LLM, floor=0, ceiling=100 * MIB))
    assert "it can have 0 (0 tokens)" in message
    assert "max_model_len:" not in message


def test_a_page_smaller_than_a_block():
    message = refuse(LLM, page_bytes=64 * 1024)
    assert "a page of 64KiB doesn't always hold a whole block of smollm2, which takes 720KiB" in message
    enough = int(message.split("at least ")[1].split("KiB")[0]) * 1024
    assert plan_card(FACTS, [LLM], page_bytes=enough)


def test_a_request_that_only_fits_while_another_sleeps_is_refused_for_models_that_start_together():
    big = replace(ENCODER, home_bytes=1200 * MIB)
    llm = replace(LLM, floor=0, max_model_len=12_000)
    message = refuse(llm, big)
    more = int(message.split("raise the card's `memory:` by at least ")[1].removesuffix("MiB")) * MIB
    assert plan_card(replace(FACTS, budget_bytes=FACTS.budget_bytes + more), [llm, big])
    assert plan_card(FACTS, [llm, replace(big, preload=False)])


def test_less_than_a_page_left():
    message = refuse(LLM, page_bytes=1950 * MIB)
    assert "less than one page of 1.9GiB: raise the card's `memory:` by at least" in message


@pytest.mark.parametrize(
    ("nbytes", "text"), [(1, "1KiB"), (1025, "2KiB"), (10 << 20, "10MiB"), ((10 << 20) + 1, "11MiB")]
)
def test_sizes_to_write_are_rounded_up(nbytes, text):
    assert at_least(nbytes) == text
