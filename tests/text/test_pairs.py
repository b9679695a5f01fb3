"""Two texts joined as the tokenizer itself joins them, and cut as it cuts them."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, processors

from onecard.engines.text.generation_config import ModelFileError
from onecard.engines.text.pairs import Pair, PairTemplate, longest_first

LETTERS = "abcdefgh"
VOCABULARY = ["[UNK]", "[CLS]", "[SEP]", "<s>", "</s>", "query", ":", "text", *LETTERS]
IDS = {word: i for i, word in enumerate(VOCABULARY)}
QUERY_WORDS = {"id": "<Q>", "ids": [IDS["query"], IDS[":"]], "tokens": ["query", ":"]}
TEXT_WORDS = {"id": "<T>", "ids": [IDS["text"], IDS[":"]], "tokens": ["text", ":"]}
CLS, SEP = ("[CLS]", IDS["[CLS]"]), ("[SEP]", IDS["[SEP]"])
START, END = ("<s>", IDS["<s>"]), ("</s>", IDS["</s>"])

PROCESSORS: dict[str, Any] = {
    "bert": processors.BertProcessing(SEP, CLS),
    "bert's template": processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[CLS, SEP]
    ),
    "roberta": processors.RobertaProcessing(END, START, trim_offsets=True, add_prefix_space=False),
    "xlm-roberta's template": processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[START, END]
    ),
    "words around": processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] <Q> $A <T> $B:0 [SEP]",
        special_tokens=[CLS, SEP, QUERY_WORDS, TEXT_WORDS],
    ),
    "nothing between": processors.TemplateProcessing(single="$A", pair="$A:1 $B:2", special_tokens=[]),
    "byte level": processors.ByteLevel(trim_offsets=True),
    "several": processors.Sequence([processors.ByteLevel(), processors.BertProcessing(SEP, CLS)]),
    "none": None,
}
TEXTS = st.text(alphabet=[*LETTERS, " "], max_size=40)


def backend_of(processor: Any) -> tokenizers.Tokenizer:
    """A token a letter."""
    backend = tokenizers.Tokenizer(models.WordLevel(IDS, unk_token="[UNK]"))
    backend.normalizer = normalizers.Replace(" ", "")
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.add_special_tokens(["[CLS]", "[SEP]", "<s>", "</s>"])
    if processor is not None:
        backend.post_processor = processor
    return backend


BACKENDS = {name: backend_of(processor) for name, processor in PROCESSORS.items()}


@pytest.fixture(params=list(PROCESSORS))
def backend(request: pytest.FixtureRequest) -> tokenizers.Tokenizer:
    return BACKENDS[request.param]


def expected(backend: tokenizers.Tokenizer, first: str, second: str) -> Pair:
    joined = backend.encode(first, second)
    return Pair(joined.ids, joined.type_ids if any(joined.type_ids) else None)


def ids(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    return backend.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("first", "second"), [("ab", "cde"), ("a", "b" * 50), ("", "ab"), ("ab", ""), ("", "")]
)
def test_a_pair_is_the_tokenizers_own(backend: tokenizers.Tokenizer, first: str, second: str) -> None:
    template = PairTemplate.of(backend)
    pair = template.join(ids(backend, first), ids(backend, second))
    assert pair == expected(backend, first, second)
    assert len(pair.token_ids) == len(first) + len(second) + template.num_added
    assert template.num_added == backend.num_special_tokens_to_add(is_pair=True)


@given(name=st.sampled_from(list(PROCESSORS)), first=TEXTS, second=TEXTS, most=st.integers(1, 90))
def test_cutting_is_longest_first(name: str, first: str, second: str, most: int) -> None:
    backend, cutting = BACKENDS[name], backend_of(PROCESSORS[name])
    template = PairTemplate.of(backend)
    cutting.enable_truncation(most + template.num_added, strategy="longest_first")
    a, b = ids(backend, first), ids(backend, second)
    keep_a, keep_b = longest_first(len(a), len(b), most)
    assert template.join(a[:keep_a], b[:keep_b]) == expected(cutting, first, second)


@given(first=st.integers(0, 100), second=st.integers(0, 100), most=st.integers(0, 200))
def test_what_stays_fills_the_room_and_no_more(first: int, second: int, most: int) -> None:
    a, b = longest_first(first, second, most)
    assert (0 <= a <= first, 0 <= b <= second) == (True, True)
    assert a + b == min(most, first + second)


def test_types_are_left_out_where_a_model_is_not_told_them() -> None:
    template = PairTemplate.of(BACKENDS["bert"])
    assert template.num_types == 2
    assert template.join([8], [9]).type_ids == [0, 0, 0, 1, 1]
    assert template.join([8], [9], typed=False).type_ids is None
    assert PairTemplate.of(BACKENDS["roberta"]).num_types == 1
    assert PairTemplate.of(BACKENDS["nothing between"]).num_types == 3


def test_a_tokenizer_that_turns_the_two_around_or_repeats_one_is_refused() -> None:
    for pair in ("$B $A", "$A $B $A"):
        processor = processors.TemplateProcessing(single="$A", pair=pair, special_tokens=[])
        with pytest.raises(ModelFileError, match="joins two texts otherwise than one after the other"):
            PairTemplate.of(backend_of(processor))


def test_a_tokenizer_that_knows_no_word_is_refused() -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    backend.normalizer = normalizers.Replace("a", "")
    with pytest.raises(ModelFileError, match="no word"):
        PairTemplate.of(backend)


def test_a_tokenizer_without_the_letter_a_tells_its_template_all_the_same() -> None:
    backend = tokenizers.Tokenizer(models.WordPiece({"猫": 0, "[CLS]": 1, "[SEP]": 2}, unk_token="[CLS]"))
    backend.normalizer = normalizers.Replace("a", "")
    backend.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    assert PairTemplate.of(backend).join([0], [0]) == Pair([1, 0, 2, 0, 2], [0, 0, 0, 1, 1])


def test_texts_stay_as_they_were_whoever_joins_them() -> None:
    """One query's ids are joined with many documents, by several threads at once."""
    template, query = PairTemplate.of(BACKENDS["bert"]), [8, 9, 10]

    def join(n: int) -> Pair:
        pair = template.join(query, [11] * n)
        pair.token_ids[0] = -1  # what a caller does with a pair is its own business
        return template.join(query, [11] * n)

    with ThreadPoolExecutor(4) as pool:
        for n, pair in enumerate(pool.map(join, range(200))):
            assert pair.token_ids == [1, 8, 9, 10, 2, *[11] * n, 2]
            assert pair.type_ids == [0] * 5 + [1] * (n + 1)
    assert query == [8, 9, 10]


@pytest.mark.weights
def test_minilms_own_pairs(minilm_path: Any) -> None:
    from onecard.engines.text.tokenizer import load_tokenizer

    backend = load_tokenizer(minilm_path).backend
    template = PairTemplate.of(backend)
    for first, second in (("What is it?", "A cat, naïve 日本語."), ("a" * 500, " "), ("[SEP] x", "[CLS]")):
        assert template.join(ids(backend, first), ids(backend, second)) == expected(backend, first, second)
