import pytest
import torch

from onecard.engines.api import SamplingParams
from onecard.engines.paged.logits import LogitsProcessor, compute_logprobs, wants_processing
from onecard.engines.paged.output import SequenceOutput, token_logprobs
from onecard.engines.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.weights
EOS = 2


@pytest.fixture(scope="module")
def tokenizer(smollm2_path):
    return load_tokenizer(smollm2_path)


def write(tokenizer, text: str, max_tokens: int = 100, **params) -> tuple[str, str | None, object]:
    """Feed the tokens of `text` and an end token; returns text, finish reason, stop reason."""
    output = SequenceOutput(tokenizer, SamplingParams(**params), 0, [1], max_tokens, frozenset({EOS}))
    written = ""
    for token in [*tokenizer.encode(text, add_special_tokens=False), EOS]:
        chunk = output.append(token, None)
        written += chunk.text
        if chunk.finish_reason is not None:
            return written, chunk.finish_reason, chunk.stop_reason
    return written, None, None


def test_an_end_token_ends_the_text_and_is_not_shown(tokenizer):
    assert write(tokenizer, "Hello, world 🎉") == ("Hello, world 🎉", "stop", None)


def test_ignore_eos_goes_on(tokenizer):
    assert write(tokenizer, "Hi", ignore_eos=True)[1] is None


def test_max_tokens_ends_with_length_and_nothing_held_back(tokenizer):
    text, reason, _ = write(tokenizer, "one two three four", max_tokens=2, stop=("twofold",))
    assert (text, reason) == ("one two", "length")


@pytest.mark.parametrize(("include", "expected"), [(False, "one "), (True, "one two")])
def test_a_stop_string_ends_the_text(tokenizer, include, expected):
    got = write(tokenizer, "one two three", stop=("two",), include_stop_str_in_output=include)
    assert got == (expected, "stop", "two")


def test_a_stop_string_that_never_completes_is_text(tokenizer):
    assert write(tokenizer, "abc ###", stop=("####",)) == ("abc ###", "stop", None)


def test_a_stop_token_is_named_as_the_reason(tokenizer):
    token = tokenizer.encode(" three", add_special_tokens=False)[0]
    assert write(tokenizer, "one two three", stop_token_ids=(token,)) == ("one two", "stop", token)


def test_min_tokens_outlasts_stop_strings_and_end_tokens(tokenizer):
    text, reason, _ = write(tokenizer, "a b a b a b", stop=("b",), min_tokens=4)
    assert text.startswith("a b a b")
    assert reason == "stop"


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def process(
    params: SamplingParams, logits: torch.Tensor, prompt: list[int], answer: list[int]
) -> list[float]:
    assert wants_processing(params)
    processor = LogitsProcessor(params, prompt, [0], torch.device("cpu"))
    for token in answer:
        processor.append(token)
    processor.apply(logits)
    return logits.tolist()


def test_bias_is_added():
    assert process(SamplingParams(logit_bias=((1, 2.0),)), row(0, 1, 2), [], []) == [0, 3, 2]


def test_min_tokens_forbids_the_ends():
    params = SamplingParams(min_tokens=2, stop_token_ids=(2,))
    assert process(params, row(5, 1, 5), [1], [1]) == [float("-inf"), 1, float("-inf")]
    assert process(params, row(5, 1, 5), [1], [1, 1]) == [5, 1, 5]


def test_repetition_covers_prompt_and_answer():
    params = SamplingParams(repetition_penalty=2.0)
    assert process(params, row(4, -4, 4, 4), [0, 1], [2]) == [2, -8, 2, 4]


def test_presence_and_frequency_cover_the_answer_alone():
    params = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25)
    assert process(params, row(1, 1, 1), [0], [1, 1, 2]) == [1, 0, 0.25]


def test_plain_parameters_want_nothing():
    assert not wants_processing(SamplingParams(temperature=0.3, top_k=4))


def test_answers_to_one_prompt_share_what_stays_the_same_and_keep_their_own_counts():
    params = SamplingParams(repetition_penalty=2.0, presence_penalty=1.0, logit_bias=((3, 5.0),))
    first = LogitsProcessor(params, [1, 2, 2], [0], torch.device("cpu"))
    second = first.another()
    assert second._prompt_ids is first._prompt_ids
    assert second._bias is first._bias
    first.append(4)
    second.append(5)
    logits = torch.ones(8)
    second.apply(logits)
    assert logits.tolist() == [1.0, 0.5, 0.5, 6.0, 1.0, -0.5, 1.0, 1.0]
    logits = torch.ones(8)
    first.apply(logits)
    assert logits.tolist() == [1.0, 0.5, 0.5, 6.0, -0.5, 1.0, 1.0, 1.0]


def test_a_token_of_the_prompt_that_comes_again_is_penalised_once():
    processor = LogitsProcessor(SamplingParams(repetition_penalty=2.0), [1], [0], torch.device("cpu"))
    processor.append(1)
    logits = torch.ones(3)
    processor.apply(logits)
    assert logits.tolist() == [1.0, 0.5, 1.0]


def test_a_token_outside_the_top_has_its_rank(tokenizer):
    logits = torch.tensor([[0.0, 5.0, 4.0, 3.0, 3.0, -1.0], [9.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    entries = token_logprobs(tokenizer, [4, 0], compute_logprobs(logits, torch.tensor([4, 0]), 2), 2)
    assert [entry.rank for entry in entries] == [4, 1]  # a tie counts, as in vLLM
    assert [[other.rank for other in entry.top] for entry in entries] == [[1, 2], [1, 2]]
    assert [other.token_id for other in entries[0].top] == [1, 2]
