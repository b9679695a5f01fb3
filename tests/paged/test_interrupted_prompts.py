"""Prompts that are stopped between two of their chunks: preempted, or refused for good."""

import pytest
from paged_bench import Bench, expected, outcome

from onecard.engines.api import ModelUnavailableError, TokenLogprob
from onecard.engines.paged.request import Request


@pytest.fixture(params=[False, True], ids=["cpu", "late"])
def late(request: pytest.FixtureRequest) -> bool:
    return request.param


def prompt_logprobs(request: Request) -> list[TokenLogprob | None]:
    return list(request.stream.prompt_logprobs or [])


def test_a_request_that_is_refused_does_not_run_in_the_step_that_found_out(late):
    """Of two answers one is in its prompt; the other has yet to begin when the model's ceiling is lowered."""
    bench = Bench(late, num_pages=20, budget=12)
    refused = bench.ask(list(range(1, 41)), n=2)
    bench.step()
    goes_on = bench.ask([50, 51], 6, priority=1)  # else its turn would come first
    bench.pages.set_share("m", 0, 4)
    bench.step()
    bench.check()
    bench.run()
    error = outcome(refused)
    assert isinstance(error, ModelUnavailableError)
    assert "needs 10 blocks of m's cache, which may have 8 of 4 tokens now" in str(error)
    assert outcome(goes_on) == expected(goes_on)
    assert not bench.failures
    assert len(bench.stats.requests) == bench.core.num_finished == 3
    bench.check_all_free()


@pytest.mark.parametrize("preempted_after", [[1], [2], [1, 4], [2, 4, 6]])
def test_logprobs_of_a_prompt_that_is_preempted_are_each_there_once(late, preempted_after):
    undisturbed, bench = Bench(late), Bench(late)
    prompt = [i * 7 % 60 for i in range(50)]
    alone = undisturbed.ask(prompt, 2, prompt_logprobs=1)
    undisturbed.run()
    request = bench.ask(prompt, 2, prompt_logprobs=1)
    for step in range(1, 8):
        bench.step()
        if step in preempted_after:
            assert bench.core.preempt_newest()
            assert request.sequences[0].num_output_tokens == 0
    bench.run()
    assert outcome(request) == expected(request)
    assert prompt_logprobs(request)[0] is None
    assert [entry.token_id for entry in prompt_logprobs(request) if entry] == prompt[1:]
    assert prompt_logprobs(request) == prompt_logprobs(alone)
