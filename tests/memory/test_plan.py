"""The card's plan: what adds up, and every way in which it can't."""

import json
from dataclasses import replace

import pytest

from onecard.engines.memory.plan import CardFacts, ModelNeeds, PlanError, at_least, plan_card

MIB = 1 << 20
FACTS = CardFacts("card0", "cpu", total_bytes=4096 * MIB, available_bytes=3500 * MIB, budget_bytes=2048 * MIB)
LLM = ModelNeeds("smollm2", "llm", 270 * MIB, 100 * MIB, 720 * 1024, 16, 4096, 1024 * MIB, 4096 * MIB)
ENCODER = ModelNeeds("minilm", "embedding", 90 * MIB, 50 * MIB, None, 16, 512, 0, 4096 * MIB)


def refuse(*needs: ModelNeeds, facts: CardFacts = FACTS, page_bytes: int | None = None) -> str:
    with pytest.raises(PlanError) as error:
        plan_card(facts, needs, page_bytes)
    return str(error.value)


def test_the_terms_add_up():
    plan = plan_card(FACTS, [LLM, ENCODER])
    assert sum(size for _, size in plan.terms()) == FACTS.total_bytes
    assert plan.arena_bytes == plan.num_pages * plan.page_bytes
    assert (
        plan.weight_bytes + plan.workspace_bytes + plan.arena_bytes + plan.slack_bytes == FACTS.budget_bytes
    )
    assert (plan.weight_bytes, plan.workspace_bytes, plan.other_bytes) == (360 * MIB, 100 * MIB, 596 * MIB)
    assert dict(plan.terms())["smollm2 weights"] == 270 * MIB
    assert FACTS.budget_bytes // 64 <= plan.slack_bytes < FACTS.budget_bytes // 64 + plan.page_bytes


def test_a_models_pages_are_its_floor_and_ceiling_less_its_weights():
    plan = plan_card(FACTS, [LLM, ENCODER], page_bytes=4 * MIB, slack_bytes=0)
    llm, encoder = plan.model("smollm2"), plan.model("minilm")
    assert llm.floor_pages == (1024 - 270) // 4
    assert llm.ceiling_pages == plan.num_pages == (2048 - 360 - 100) // 4
    # A page of 4 MiB holds 4 or 5 blocks of 720 KiB on the arena's grid; 4 are sure.
    assert (llm.blocks_per_page, llm.kv_tokens_floor) == (4, llm.floor_pages * 4 * 16)
    assert llm.kv_tokens_ceiling == plan.num_pages * 4 * 16
    assert 0 < llm.waste == plan.waste < 0.25
    assert (encoder.floor_pages, encoder.ceiling_pages, encoder.kv_tokens_ceiling) == (0, 0, 0)


def test_without_a_page_size_none_is_lost_at_edges():
    assert plan_card(FACTS, [LLM]).waste == 0


def test_no_floor_is_no_guarantee_and_says_so():
    plan = plan_card(FACTS, [replace(LLM, floor=0)])
    assert plan.model("smollm2").floor_pages == 0
    assert plan.notes == (
        "smollm2: 0 tokens of KV cache are guaranteed; a request of max_model_len 4096 needs borrowed memory",
    )
    assert plan_card(FACTS, [LLM]).notes == ()


def test_encoders_alone_need_no_arena():
    plan = plan_card(FACTS, [ENCODER])
    assert (plan.num_pages, plan.arena_bytes, plan.waste) == (0, 0, 0.0)
    assert sum(size for _, size in plan.terms()) == FACTS.total_bytes


def test_the_plan_is_json():
    plan = plan_card(FACTS, [LLM, ENCODER])
    data = json.loads(json.dumps(plan.as_dict()))
    assert data["models"][0]["name"] == "smollm2"
    assert data["unused_bytes"] == FACTS.available_bytes - FACTS.budget_bytes


def test_weights_over_the_budget():
    message = refuse(replace(LLM, weight_bytes=1900 * MIB, floor=0), ENCODER)
    assert "1.86GiB (smollm2) + 90MiB (minilm)" in message
    assert "74MiB more than the card's budget of 2GiB (of 4GiB, 3.42GiB available)" in message
    assert "raise the card's `memory:`" in message


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


def test_less_than_a_page_left():
    message = refuse(LLM, page_bytes=1900 * MIB)
    assert "less than one page of 1.86GiB: raise the card's `memory:` by at least" in message


@pytest.mark.parametrize(
    ("nbytes", "text"), [(1, "1KiB"), (1025, "2KiB"), (10 << 20, "10MiB"), ((10 << 20) + 1, "11MiB")]
)
def test_sizes_to_write_are_rounded_up(nbytes, text):
    assert at_least(nbytes) == text
