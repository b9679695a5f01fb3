"""Tokenising for asyncio callers: short texts at once, long ones in a thread pool, piece by piece.

The Rust tokenizer lets go of the GIL for long texts, so threads help; but a hop to a thread and back costs
more than encoding a short text, so those stay on the event loop.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from onecard.engines.api import ChatPrompt, InvalidRequestError
from onecard.engines.text.chat_template import text_only
from onecard.engines.text.fit import FLOOR_CHARS, PROBE_CHARS, Fit, encode_within
from onecard.engines.text.tokenizer import SHORT_CHARS, SHORT_TOKENS, Tokenizer
from onecard.engines.text.vocabulary import Vocabulary

T = TypeVar("T")

_NO_LIMIT = 1 << 31
ANY_LENGTH = Fit(_NO_LIMIT, _NO_LIMIT, "count")
_TEXT_COSTS = 50
"""What a text costs beside its characters, in characters."""


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt's ids, and its text where it had one (the rendered text of messages)."""

    token_ids: list[int]
    text: str | None


class TextService:
    """The `api.Tokenizing` part that engines share; belongs to the event loop's thread."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        executor: Executor,
        inline_chars: int = SHORT_CHARS,
        read_parts: Callable[[ChatPrompt], ChatPrompt] = text_only,
        num_rows: int | None = None,
        model: str = "the model",
    ):
        """`read_parts` makes of messages with parts what the chat template takes, or refuses them.
        `num_rows`: of `model`'s embedding table. Raises `ModelFileError` where `tokenizer` is another's."""
        self.tokenizer = tokenizer
        self.vocabulary = Vocabulary(tokenizer, num_rows, model)
        self._executor = executor
        self._inline_chars = inline_chars
        self._read_parts = read_parts
        self._one_long_text = asyncio.Lock()

    async def encode_prompt(
        self,
        prompt: str | Sequence[int] | ChatPrompt,
        add_special_tokens: bool | None = None,
        fit: Fit = ANY_LENGTH,
    ) -> EncodedPrompt:
        """Text, ids or messages to ids. What `fit` cuts may still be longer than it says, but not much.

        Special tokens are added as told; where nothing is said (None) to text, but not to messages: templates
        write their own. Raises `InvalidRequestError`, before anything is encoded where there is too much.
        """
        if isinstance(prompt, str):
            ids = await self._encode(prompt, add_special_tokens is not False, fit)
            return EncodedPrompt(ids, prompt)
        if isinstance(prompt, ChatPrompt):
            text = await self._render(prompt, fit)
            return EncodedPrompt(await self._encode(text, bool(add_special_tokens), fit), text)
        return EncodedPrompt(self.given_ids(prompt, fit), None)

    async def encode_texts(
        self, texts: Sequence[str], add_special_tokens: bool = True, fit: Fit = ANY_LENGTH
    ) -> list[list[int]]:
        """Each text's ids; see `encode_prompt`. Many go through the tokenizer piece by piece, so that others
        get their turns; the request is refused as soon as one of its texts is too long."""
        lengths = list(map(len, texts))
        longest = max(lengths, default=0)
        fit.check_chars(longest, self.tokenizer.longest_token, lengths.index(longest) if texts else 0)
        encoded: list[list[int]] = []
        for first, group in _groups(texts):
            if len(group) == 1:
                encoded.append(await self._encode(group[0], add_special_tokens, fit, first))
            else:
                encoded += await self._encode_group(group, add_special_tokens, fit, first)
        return encoded

    async def tokenize(
        self, prompt: str | ChatPrompt, add_special_tokens: bool | None = None, fit: Fit = ANY_LENGTH
    ) -> list[int]:
        return (await self.encode_prompt(prompt, add_special_tokens, fit)).token_ids

    async def detokenize(self, token_ids: Sequence[int], param: str = "tokens") -> str:
        """Special tokens are kept. Raises `InvalidRequestError` for ids outside the vocabulary."""

        def decode() -> str:
            self.vocabulary.check(token_ids, param)
            return self.tokenizer.decode(token_ids, skip_special_tokens=False)

        return await self.run(len(token_ids) * self._inline_chars // SHORT_TOKENS, decode)

    async def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        """The vocabulary's own spelling of each id (`Ġhello`)."""
        piece = self.tokenizer.token_piece
        size = len(token_ids) * self._inline_chars // SHORT_TOKENS
        return await self.run(size, lambda: list(map(piece, token_ids)))

    def given_ids(self, token_ids: Sequence[int], fit: Fit, index: int = 0, advice: str = "") -> list[int]:
        """A client's own ids, cut as `fit` says. Raises `InvalidRequestError` for ids that the model doesn't
        have, `TextTooLongError` for too many of them."""
        fit.check_tokens(len(token_ids), index)
        if fit.cuts:
            token_ids = token_ids[-fit.tokens :] if fit.keep == "last" else token_ids[: fit.tokens]
        self.vocabulary.check(token_ids, fit.param, advice)
        return list(token_ids)

    async def run(self, size: int, call: Callable[[], T]) -> T:
        """`call` at once, or in the executor where it has to do with more than a few characters."""
        if size <= self._inline_chars:
            return call()
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    async def _render(self, prompt: ChatPrompt, fit: Fit) -> str:
        chat = self._read_parts(prompt)
        contents = (message.get("content") for message in chat.messages)
        num_chars = sum(len(content) for content in contents if isinstance(content, str))
        whole = replace(fit, keep="all") if fit.cuts else fit  # a template can't be told to cut
        whole.check_chars(num_chars, self.tokenizer.longest_token)
        return await self.tokenizer.render_chat(chat)

    async def _encode(self, text: str, add_special_tokens: bool, fit: Fit, index: int = 0) -> list[int]:
        def encode(part: str) -> list[int]:
            _check_text(part)
            return self.tokenizer.encode(part, add_special_tokens)

        def encode_whole() -> list[int]:
            ids = encode_within(encode, text, fit, self.tokenizer.longest_token, index)
            self.vocabulary.check_encoded(ids, fit.param)
            return ids

        async with self._turn(len(text)):
            return await self.run(len(text), encode_whole)

    async def _encode_group(
        self, texts: Sequence[str], add_special_tokens: bool, fit: Fit, first: int
    ) -> list[list[int]]:
        """Short texts in one call to the tokenizer, which spreads them over its own threads."""

        def encode() -> list[list[int]]:
            for text in texts:
                _check_text(text)
            encoded = self.tokenizer.encode_batch(texts, add_special_tokens)
            for index, ids in enumerate(encoded, first):
                fit.check_tokens(len(ids), index)
                self.vocabulary.check_encoded(ids, fit.param)
            return encoded

        return await self.run(sum(map(len, texts)) + _TEXT_COSTS * len(texts), encode)

    @asynccontextmanager
    async def _turn(self, num_chars: int) -> AsyncIterator[None]:
        """A tokenizer needs up to 500 bytes a character: of the longest texts one at a time."""
        if num_chars <= FLOOR_CHARS:
            yield
        else:
            async with self._one_long_text:
                yield


def _groups(texts: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    """Runs of texts of `PROBE_CHARS` together, and where each begins; a longer text is one by itself."""
    first, size = 0, 0
    for index, text in enumerate(texts):
        if index > first and size + len(text) > PROBE_CHARS:
            yield first, texts[first:index]
            first, size = index, 0
        size += len(text) + _TEXT_COSTS
    if texts:
        yield first, texts[first:]


def _check_text(text: str) -> None:
    # JSON may carry half of a surrogate pair (`"\ud83d"`), which no encoding can represent.
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError("The text holds a lone surrogate (half of a character).") from None
