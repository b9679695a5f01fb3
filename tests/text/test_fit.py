"""Texts that can't fit are refused before they cost anything, and those that are cut are read no further."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from onecard.engines.api import ChatPrompt, ContextLengthError, InvalidRequestError
from onecard.engines.text.chat_template import ChatTemplates
from onecard.engines.text.fit import (
    CEILING_CHARS,
    FLOOR_CHARS,
    PROBE_CHARS,
    Fit,
    TextTooLongError,
    encode_within,
    most_chars,
)
from onecard.engines.text.service import TextService
from onecard.engines.text.token_text import SpecialTokens
from onecard.engines.text.tokenizer import Tokenizer

WORDS = "the quick brown fox jumps over the lazy dog 123 times\n"
TEXTS = [WORDS, "1", " ", "日本語のテキスト 中文文本 ", "don't  can't   I'LL\t", "ab", "🤖 e\u0301"]


def unread(text: str) -> list[int]:
    raise AssertionError("it was encoded")


class Reader:
    """Counts the characters that are encoded."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self.num_chars = 0

    def __call__(self, text: str) -> list[int]:
        self.num_chars += len(text)
        return self._tokenizer.encode(text)


def test_the_bound_is_the_longest_token_over_and_over() -> None:
    assert most_chars(8192, 81) == 8192 * 81
    assert most_chars(256, 18) == FLOOR_CHARS, "blanks that a tokenizer drops still pass"
    assert most_chars(1 << 17, 128) == CEILING_CHARS
    assert most_chars(1 << 20, 128) == 16 << 20, "a million tokens don't make the bound useless"
    assert most_chars(1 << 20, 3) == 3 << 20


@pytest.mark.parametrize("keep", ["all", "count"])
def test_what_no_vocabulary_can_compress_is_refused_unread(keep: str) -> None:
    fit = Fit(8192, 8192, keep)  # type: ignore[arg-type]
    with pytest.raises(ContextLengthError, match="maximum context length is 8192 tokens") as refused:
        encode_within(unread, "1" * 33_000_000, fit, 81)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "prompt")
    assert f"33000000 characters (no more than {8192 * 81} can fit)" in refused.value.message


def test_what_turns_out_too_long_is_read_no_further(byte_level: Tokenizer) -> None:
    """A context of a million tokens lets 16 million characters of one digit pass the first bound."""
    read = Reader(byte_level)
    with pytest.raises(TextTooLongError, match=f"at least {PROBE_CHARS} tokens"):
        encode_within(read, "1" * 4_000_000, Fit(50_000, 50_000), 128)
    assert read.num_chars == PROBE_CHARS
    million = Reader(byte_level)
    with pytest.raises(TextTooLongError, match="at least"):
        encode_within(million, "1" * 8_000_000, Fit(1 << 20, 1 << 20), 128)
    assert million.num_chars < 5 << 20


def test_what_fits_is_encoded_as_ever(any_tokenizer: Tokenizer) -> None:
    for text in TEXTS:
        whole = (text * (200_000 // len(text) + 1))[:200_000]
        fit = Fit(1 << 20, 1 << 20)
        assert encode_within(any_tokenizer.encode, whole, fit, 128) == any_tokenizer.encode(whole)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("tokens", [1, 500, 20_000])
def test_a_cut_text_is_cut_where_the_whole_one_would_be(
    any_tokenizer: Tokenizer, text: str, tokens: int
) -> None:
    whole = text * (400_000 // len(text) + 1)
    ids = any_tokenizer.encode(whole)
    read = Reader(any_tokenizer)
    first = encode_within(read, whole, Fit(tokens, tokens, "first"), any_tokenizer.longest_token)
    assert first[:tokens] == ids[:tokens]
    last = encode_within(read, whole, Fit(tokens, tokens, "last"), any_tokenizer.longest_token)
    if not text.isspace():
        assert last[-tokens:] == ids[-tokens:]
    else:  # one endless word: how its end is grouped hangs on where it began
        assert set(any_tokenizer.decode(last[-tokens:])) == {text}
    assert read.num_chars < len(whole), "both ends together cost less than the whole"


def wordpiece() -> Tokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "fox": 1}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return Tokenizer(backend, SpecialTokens(), ChatTemplates())


def test_a_vocabulary_that_drops_characters_may_be_given_more_of_them() -> None:
    tokenizer = wordpiece()
    text = " " * (FLOOR_CHARS - 3) + "fox"
    assert encode_within(tokenizer.encode, text, Fit(256, 256), tokenizer.longest_token) == [1]
    with pytest.raises(TextTooLongError):
        encode_within(unread, text + " ", Fit(256, 256), tokenizer.longest_token)
    blanks = " " * 3_000_000
    with pytest.raises(TextTooLongError, match="are not read"):
        encode_within(tokenizer.encode, blanks, Fit(256, 256, "first"), tokenizer.longest_token)


@contextmanager
def another_thread() -> Iterator[Callable[[], float]]:
    """A thread that wants the GIL every millisecond; tells the longest that it had to wait."""
    longest, stop = [0.0], threading.Event()

    def wait() -> None:
        last = time.perf_counter()
        while not stop.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            longest[0], last = max(longest[0], now - last), now

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield lambda: longest[0]
    finally:
        stop.set()
        thread.join()


def test_long_texts_go_without_the_gil(byte_level: Tokenizer) -> None:
    text = WORDS * 40_000
    with another_thread() as longest_wait:
        began = time.perf_counter()
        ids = byte_level.encode(text)
        assert longest_wait() < (time.perf_counter() - began) / 3
    with another_thread() as longest_wait:
        began = time.perf_counter()
        assert byte_level.decode(ids) == text
        assert longest_wait() < (time.perf_counter() - began) / 2


@pytest.fixture
def service(byte_level: Tokenizer) -> Iterator[TextService]:
    templates = ChatTemplates({"default": "{% for m in messages %}{{ m.content }}{% endfor %}"})
    with ThreadPoolExecutor(1) as executor:
        yield TextService(Tokenizer(byte_level.backend, SpecialTokens(), templates), executor)


async def test_every_way_to_a_tokenizer_is_bounded(service: TextService) -> None:
    """Text, messages, a batch, and ids: nothing of it is encoded, rendered or looked through."""
    service.tokenizer.encode = service.tokenizer.encode_batch = unread  # type: ignore
    service.tokenizer.render_chat = unread  # type: ignore
    long, fit = "1" * 33_000_000, Fit(8192, 8192)
    with pytest.raises(TextTooLongError, match="33000000 characters"):
        await service.tokenize(long, fit=Fit(8192, 8192, "count"))
    chat = ChatPrompt(({"role": "user", "content": long},))
    for keep in ("all", "last", "count"):
        with pytest.raises(TextTooLongError, match="33000000 characters"):
            await service.encode_prompt(chat, fit=Fit(8192, 8192, keep))  # type: ignore[arg-type]
    with pytest.raises(TextTooLongError, match=r"33000000 characters .* in input 1"):
        await service.encode_texts(["fox", long], fit=Fit(8192, 8192, name=lambda i: f"input {i}"))
    with pytest.raises(TextTooLongError, match="5000000 tokens"):
        await service.encode_prompt([-1] * 5_000_000, fit=fit)


async def test_ids_that_are_cut_are_cut_before_they_are_looked_at(service: TextService) -> None:
    ids = [-1] * 1_000_000
    last = await service.encode_prompt([*ids, 5, 6], fit=Fit(2, 2, "last"))
    assert last.token_ids == [5, 6]
    assert service.given_ids([5, 6, *ids], Fit(2, 2, "first")) == [5, 6]


async def test_a_batch_is_refused_with_its_first_text_that_is_too_long(service: TextService) -> None:
    batch, num_chars = service.tokenizer.encode_batch, 0

    def read(texts: list[str], add_special_tokens: bool) -> list[list[int]]:
        nonlocal num_chars
        num_chars += sum(map(len, texts))
        return batch(texts, add_special_tokens)

    service.tokenizer.encode_batch = read  # type: ignore
    texts = ["1 " * 2000] * 500
    with pytest.raises(TextTooLongError, match="4000 tokens in input 0"):
        await service.encode_texts(texts, fit=Fit(512, 512, name=lambda i: f"input {i}"))
    assert num_chars <= PROBE_CHARS
    service.tokenizer.encode_batch = batch  # type: ignore
    assert await service.encode_texts(texts) == batch(texts)
    assert await service.encode_texts([]) == []


async def test_the_event_loop_runs_on_while_a_long_text_is_encoded(service: TextService) -> None:
    """Half a character in a long text is found without a loop over its characters, too."""
    text = "déjà vu " * 150_000
    with another_thread() as longest_wait:
        began = time.perf_counter()
        with pytest.raises(InvalidRequestError, match="surrogate"):
            await service.tokenize(text + "\ud83d")
        assert time.perf_counter() - began < 0.5
        await service.tokenize(text)
        assert longest_wait() < (time.perf_counter() - began) / 2


def test_every_tokens_text_counts_for_the_bound(any_tokenizer: Tokenizer) -> None:
    pieces = (any_tokenizer.token_piece(i) for i in range(any_tokenizer.max_token_id + 1))
    assert any_tokenizer.longest_token == max(map(len, pieces))
