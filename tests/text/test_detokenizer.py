"""Pieces, joined, are the decoding of all ids; no piece ends inside a character."""

import random

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from onecard.engines.text.answer_text import IncrementalDetokenizer
from onecard.engines.text.chat_template import ChatTemplates
from onecard.engines.text.token_text import SpecialTokens
from onecard.engines.text.tokenizer import Tokenizer


def stream(
    tokenizer: Tokenizer, ids: list[int], prompt: tuple[int, ...] = (), skip: bool = True
) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, prompt, skip)
    return [*(detokenizer.append([i]) for i in ids), detokenizer.finish()]


@pytest.mark.parametrize("skip", [True, False])
def test_streams_every_text_back_whole(any_tokenizer: Tokenizer, texts: list[str], skip: bool) -> None:
    for text in texts:
        ids = any_tokenizer.encode(text)
        pieces = stream(any_tokenizer, ids, skip=skip)
        assert "".join(pieces) == any_tokenizer.decode(ids, skip_special_tokens=skip)
        assert "\ufffd" not in "".join(pieces)
        # A character comes whole with its last token: nothing of encoded text is left for the end.
        assert pieces[-1] == ""


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_random_byte_level_tokens_join_to_their_decoding(byte_level: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, byte_level.max_token_id), max_size=40))
    skip = data.draw(st.booleans())
    assert "".join(stream(byte_level, ids, skip=skip)) == byte_level.decode(ids, skip_special_tokens=skip)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_random_sentencepiece_tokens_join_to_their_bytes(
    sentencepiece: Tokenizer, data: st.DataObject
) -> None:
    """The library writes one U+FFFD for each byte of a run that is invalid anywhere: that can't be
    streamed.
    """
    ids = data.draw(st.lists(st.integers(0, sentencepiece.max_token_id), max_size=40))
    kept = [i for i in ids if i not in sentencepiece.special_token_ids]
    raw = b"".join(map(sentencepiece.token_bytes, kept))
    expected = raw.decode("utf-8", errors="replace").removeprefix(" ")
    assert "".join(stream(sentencepiece, ids)) == expected
    if "\ufffd" not in expected:
        assert expected == sentencepiece.decode(ids)


def test_several_tokens_at_once_give_the_same_text(any_tokenizer: Tokenizer, texts: list[str]) -> None:
    rng = random.Random(0)
    ids = any_tokenizer.encode("".join(texts))
    detokenizer = IncrementalDetokenizer(any_tokenizer)
    text, at = "", 0
    while at < len(ids):
        step = rng.randint(1, 5)
        text += detokenizer.append(ids[at : at + step])
        at += step
    assert text + detokenizer.finish() == any_tokenizer.decode(ids)


def test_a_partial_character_is_held_back_and_replaced_only_at_the_end(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("a🤯")
    assert len(ids) > 2
    detokenizer = IncrementalDetokenizer(byte_level)
    assert detokenizer.append(ids[:-1]) == "a"
    assert detokenizer.finish() == "\ufffd"


def test_a_character_begun_by_the_prompt_comes_whole(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("say 🤯!")
    cut = next(i for i in range(len(ids)) if byte_level.decode(ids[:i]).endswith("\ufffd"))
    assert "".join(stream(byte_level, ids[cut:], tuple(ids[:cut]))) == "🤯!"


def test_the_leading_space_belongs_to_the_text_after_a_prompt(sentencepiece: Tokenizer) -> None:
    prompt, answer = sentencepiece.encode("the quick"), sentencepiece.encode("brown fox")
    assert "".join(stream(sentencepiece, answer)) == "brown fox"
    assert "".join(stream(sentencepiece, answer, tuple(prompt))) == " brown fox"


def test_special_tokens_are_kept_on_request(any_tokenizer: Tokenizer) -> None:
    end = any_tokenizer.backend.token_to_id("<|end|>")
    ids = [*any_tokenizer.encode("fox"), end]
    assert "".join(stream(any_tokenizer, ids)) == "fox"
    assert "".join(stream(any_tokenizer, ids, skip=False)) == "fox<|end|>"


@pytest.mark.weights
def test_smollm2_streams_what_it_decodes(smollm2: Tokenizer, texts: list[str]) -> None:
    rng = random.Random(1)
    noise = [rng.randint(0, smollm2.max_token_id) for _ in range(2000)]
    for ids in [noise, *map(smollm2.encode, texts)]:
        assert "".join(stream(smollm2, ids)) == smollm2.decode(ids)


def test_wordpiece_streams_by_window() -> None:
    vocab = {"[UNK]": 0, "un": 1, "##break": 2, "##able": 3, "glass": 4}
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    tokenizer = Tokenizer(backend, SpecialTokens(), ChatTemplates())
    ids = tokenizer.encode("unbreakable glass glass unbreak")
    assert stream(tokenizer, ids) == ["un", "break", "able", " glass", " glass", " un", "break", ""]


def test_what_never_becomes_a_character_is_not_decoded_again_and_again() -> None:
    """A vocabulary may have U+FFFD itself: an answer of nothing else must not be held back for ever."""
    words = {"[UNK]": 0, "\ufffd": 1}
    backend = tokenizers.Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.decoder = decoders.Fuse()
    tokenizer = Tokenizer(backend, SpecialTokens(), ChatTemplates())
    detokenizer, decoded = IncrementalDetokenizer(tokenizer), []
    decode = tokenizer.decode
    tokenizer.decode = lambda ids, **how: decoded.append(len(ids)) or decode(ids, **how)  # type: ignore
    pieces = [detokenizer.append([1]) for _ in range(1000)]
    assert "".join(pieces) + detokenizer.finish() == "\ufffd" * 1000
    assert max(decoded) < 50
