"""Ids beyond the rows of a model's embedding table never reach the model."""

import logging

import pytest
import tokenizers
from tokenizers import AddedToken, models, processors

from onecard.engines.api import InvalidRequestError
from onecard.engines.text.chat_template import ChatTemplates
from onecard.engines.text.generation_config import ModelFileError
from onecard.engines.text.token_text import SpecialTokens
from onecard.engines.text.tokenizer import Tokenizer
from onecard.engines.text.vocabulary import Vocabulary


def tokenizer(trained: int = 10, added: int = 0, around: str | None = None) -> Tokenizer:
    words = {"[UNK]": 0, **{f"w{i}": i for i in range(1, trained)}}
    backend = tokenizers.Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.add_tokens([AddedToken(f"<{i}>", special=True) for i in range(added)])
    if around is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{around} $A", special_tokens=[(around, backend.token_to_id(around))]
        )
    return Tokenizer(backend, SpecialTokens(), ChatTemplates())


def test_a_table_with_more_rows_than_tokens_is_fine() -> None:
    vocabulary = Vocabulary(tokenizer(10), 16)
    vocabulary.check([0, 9], "prompt")
    with pytest.raises(InvalidRequestError, match=r"10 is not in the vocabulary \(0 to 9\)"):
        vocabulary.check([10], "prompt")
    assert vocabulary.ends([15]) == {15}, "a padded row can be sampled"


def test_a_tokenizer_with_more_tokens_than_rows_is_refused_with_both_numbers() -> None:
    with pytest.raises(ModelFileError, match=r"mine: the tokenizer has 10 tokens.* table has 8 rows"):
        Vocabulary(tokenizer(10), 8, "mine")


def test_added_tokens_beyond_the_table_are_served_around(caplog: pytest.LogCaptureFixture) -> None:
    """As of the many models that were given a `[PAD]` and no row for it."""
    with caplog.at_level(logging.WARNING):
        padded = tokenizer(10, added=2)
        vocabulary = Vocabulary(padded, 11)
    assert "1 added tokens beyond the 11 rows" in caplog.text
    vocabulary.check([10], "prompt")
    with pytest.raises(InvalidRequestError, match=r"11 is not in the vocabulary \(0 to 10\)"):
        vocabulary.check([11], "prompt")
    vocabulary.check_encoded(padded.encode("<0>"), "prompt")
    with pytest.raises(InvalidRequestError, match=r"token, 11, which .* never learned"):
        vocabulary.check_encoded(padded.encode("<1>"), "prompt")


def test_a_token_beyond_the_table_around_every_text_is_refused() -> None:
    with pytest.raises(ModelFileError, match=r"puts token 10 \('<0>'\) into every text.* 10 rows"):
        Vocabulary(tokenizer(10, added=1, around="<0>"), 10)


def test_an_end_token_beyond_the_table_is_refused_or_left_out(caplog: pytest.LogCaptureFixture) -> None:
    vocabulary = Vocabulary(tokenizer(10), 10, "mine")
    with pytest.raises(ModelFileError, match=r"mine: `eos_token_id` is 10, 50000,.* 10 rows"):
        vocabulary.ends([50_000, 10])
    assert vocabulary.ends([50_000, 3]) == {3}
    assert "no token 50000 to end with" in caplog.text
    with pytest.raises(ModelFileError, match="mine: `eos_token_id` must be whole numbers, not '2'"):
        vocabulary.ends([3, "2"])  # type: ignore[list-item]
    assert vocabulary.ends([-1]) == vocabulary.ends([]) == frozenset()
