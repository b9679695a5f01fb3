"""`sampling:` of a model: what may stand there, and what is said of mistakes."""

from collections.abc import Callable

import pytest

from onecard.registry.spec import ModelSpec, Registry

Load = Callable[[str], Registry]
Mistakes = Callable[[str], list[str]]


def with_sampling(sampling: str, kind: str = "llm") -> str:
    return f"models: [{{name: m, kind: {kind}, source: hf:o/n, sampling: {sampling}}}]"


def test_what_is_left_out_or_auto_is_left_to_the_model(load: Load) -> None:
    (model,) = load(with_sampling("{temperature: 0, top_p: 0.9, top_k: auto, max_tokens: 512}")).models
    assert model.sampling.given() == {"temperature": 0.0, "top_p": 0.9, "max_tokens": 512}
    assert ModelSpec("m").sampling.given() == {}


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        (
            "{top_p: 1.5}",
            "top_p: wants a number from 0 to 1 or `auto`, got `1.5`; write for example `top_p: 0.95`",
        ),
        (
            "{temperature: hot}",
            "temperature: wants a number of at least 0 or `auto`, got the text `hot`; write for example",
        ),
        ("{temprature: 1}", "sampling.temprature: unknown key `temprature`. Did you mean `temperature`?"),
        ("{max_tokens: 0}", "sampling.max_tokens: wants a whole number from 1 to"),
        ("0.7", "sampling: wants a mapping with keys such as"),
    ],
)
def test_a_mistake_is_told_with_what_to_write(sampling: str, said: str, mistakes: Mistakes) -> None:
    (mistake,) = mistakes(with_sampling(sampling))
    assert said in mistake


def test_a_model_that_draws_no_tokens_has_no_sampling(load: Load, mistakes: Mistakes) -> None:
    (mistake,) = mistakes(with_sampling("{temperature: 0}", kind="embedding"))
    assert "no tokens are drawn by a model of kind `embedding`; remove `sampling`" in mistake
    load(with_sampling("{}", kind="embedding"))
