"""Tokenising for asyncio callers: short texts at once, long ones in a thread pool.

The Rust tokenizer releases the GIL, so threads help; but a hop to a thread and back costs more than
encoding a short text, so those stay on the event loop.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

from onecard.engines.api import ChatPrompt, InvalidRequestError
from onecard.engines.text.chat_template import text_only
from onecard.engines.text.tokenizer import Pair, Tokenizer, encode_pairs

T = TypeVar("T")

INLINE_CHARS = 2000
"""Some 0.3 ms of encoding, about what a thread hop costs under load."""
INLINE_TOKENS = 1000


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
        inline_chars: int = INLINE_CHARS,
        read_parts: Callable[[ChatPrompt], ChatPrompt] = text_only,
    ):
        """`read_parts` makes of messages with parts what the chat template takes, or refuses them."""
        self.tokenizer = tokenizer
        self._executor = executor
        self._inline_chars = inline_chars
        self._read_parts = read_parts

    async def encode_prompt(
        self, prompt: str | Sequence[int] | ChatPrompt, add_special_tokens: bool | None = None
    ) -> EncodedPrompt:
        """Text, ids or messages to ids.

        Special tokens are added as told; where nothing is said (None) to text, but not to messages: templates
        write their own. Raises `InvalidRequestError`.
        """
        if isinstance(prompt, str):
            ids = await self._run(len(prompt), lambda: self._encode(prompt, add_special_tokens is not False))
            return EncodedPrompt(ids, prompt)
        if isinstance(prompt, ChatPrompt):
            chat = self._read_parts(prompt)
            size = self._inline_chars + 1 if self.tokenizer.renders_slowly(chat) else _chat_size(chat)
            return await self._run(size, lambda: self._encode_chat(chat, bool(add_special_tokens)))
        self.check_token_ids(prompt)
        return EncodedPrompt(list(prompt), None)

    async def encode_texts(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """All texts in one call to the tokenizer, which spreads them over its own threads."""
        if len(texts) == 1:
            return [(await self.encode_prompt(texts[0], add_special_tokens)).token_ids]
        for text in texts:
            _check_text(text)
        encode = self.tokenizer.encode_batch
        return await self._run(sum(map(len, texts)), lambda: encode(texts, add_special_tokens))

    async def encode_pairs(
        self, query: str, documents: Sequence[str], most_of_other: int | None, most: int | None
    ) -> list[Pair]:
        """The query with each document; see `tokenizer.encode_pairs`. Raises `InvalidRequestError`."""
        for text in (query, *documents):
            _check_text(text)
        backend, size = self.tokenizer.backend, len(query) + sum(map(len, documents))
        return await self._run(size, lambda: encode_pairs(backend, query, documents, most_of_other, most))

    async def tokenize(self, prompt: str | ChatPrompt, add_special_tokens: bool | None = None) -> list[int]:
        return (await self.encode_prompt(prompt, add_special_tokens)).token_ids

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """Special tokens are kept. Raises `InvalidRequestError` for ids outside the vocabulary."""
        self.check_token_ids(token_ids)
        decode = self.tokenizer.decode
        size = len(token_ids) * self._inline_chars // INLINE_TOKENS
        return await self._run(size, lambda: decode(token_ids, skip_special_tokens=False))

    def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        """The vocabulary's own spelling of each id (`Ġhello`)."""
        return [self.tokenizer.token_piece(i) for i in token_ids]

    def check_token_ids(self, token_ids: Sequence[int], param: str = "prompt") -> None:
        """Raises `InvalidRequestError` for an id that the vocabulary doesn't have."""
        if token_ids and not (min(token_ids) >= 0 and max(token_ids) <= self.tokenizer.max_token_id):
            bad = next(i for i in token_ids if not 0 <= i <= self.tokenizer.max_token_id)
            raise InvalidRequestError(
                f"Token id {bad} is not in the vocabulary (0 to {self.tokenizer.max_token_id}).", param=param
            )

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        _check_text(text)
        return self.tokenizer.encode(text, add_special_tokens)

    def _encode_chat(self, prompt: ChatPrompt, add_special_tokens: bool) -> EncodedPrompt:
        text = self.tokenizer.render_chat(prompt)
        return EncodedPrompt(self._encode(text, add_special_tokens), text)

    async def _run(self, size: int, call: Callable[[], T]) -> T:
        if size <= self._inline_chars:
            return call()
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)


def _chat_size(prompt: ChatPrompt) -> int:
    contents = sum(len(str(message.get("content") or "")) for message in prompt.messages)
    return contents + sum(len(str(tool)) for tool in prompt.tools or ())


def _check_text(text: str) -> None:
    # JSON may carry half of a surrogate pair (`"\ud83d"`), which no encoding can represent.
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRequestError("The text holds a lone surrogate (half of a character).")
