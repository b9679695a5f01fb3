"""Token ids to an answer's text while they are being generated.

The text of all pieces joined equals the decoding of all ids at once, and no piece ends inside a
character. For byte-level and SentencePiece vocabularies a token's bytes don't depend on its neighbours,
so one incremental UTF-8 decoder does it with O(1) work a token; other decoders are asked twice over a
short window.
"""

import codecs
from collections.abc import Iterable, Sequence

from onecard.engines.text.tokenizer import Tokenizer

_PROMPT_TAIL = 4
"""A character has at most four bytes, so no more prompt tokens can reach into the first one generated."""
_REPLACEMENT = "\ufffd"
_MAX_HELD = 16
"""Tokens that wait for a character to become whole. It has four bytes; what is still broken then stays so."""


class IncrementalDetokenizer:
    """Decodes what follows `prompt_token_ids`. Not thread-safe; one for each answer.

    After a prompt, SentencePiece's leading space belongs to the text (`the capital is` + ` Paris`);
    without one it is the dummy prefix that decoding drops.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int] = (), skip_special_tokens: bool = True
    ):
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_token_ids if skip_special_tokens else frozenset()
        tail = prompt_token_ids[-_PROMPT_TAIL:]
        by_bytes = tokenizer.spelling.kind != "other"
        self._decode: _Bytes | _Window = _Bytes(tokenizer, tail) if by_bytes else _Window(tokenizer, tail)

    def append(self, token_ids: Iterable[int]) -> str:
        """The text that `token_ids` complete."""
        skipped = self._skipped
        return self._decode.append([i for i in token_ids if i not in skipped] if skipped else list(token_ids))

    def finish(self) -> str:
        """What was held back: U+FFFD for the bytes of a character that never got whole, else nothing."""
        return self._decode.finish()


class _Bytes:
    def __init__(self, tokenizer: Tokenizer, prompt_tail: Sequence[int]):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip = tokenizer.spelling.strips_leading_space and not prompt_tail
        special = tokenizer.special_token_ids
        self._utf8.decode(b"".join(tokenizer.token_bytes(i) for i in prompt_tail if i not in special))

    def append(self, token_ids: list[int]) -> str:
        token_bytes = self._tokenizer.token_bytes
        return self._without_dummy_prefix(self._utf8.decode(b"".join([token_bytes(i) for i in token_ids])))

    def finish(self) -> str:
        return self._without_dummy_prefix(self._utf8.decode(b"", final=True))

    def _without_dummy_prefix(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text


class _Window:
    """Decodes the tokens since the last piece with and without the new ones; the rest is new text."""

    def __init__(self, tokenizer: Tokenizer, prompt_tail: Sequence[int]):
        self._tokenizer = tokenizer
        self._given = list(prompt_tail)
        self._held: list[int] = []

    def append(self, token_ids: list[int]) -> str:
        self._held += token_ids
        text = self._new_text()
        if (not text or text.endswith(_REPLACEMENT)) and len(self._held) < _MAX_HELD:
            return ""
        self._given, self._held = self._held, []
        return text

    def finish(self) -> str:
        text = self._new_text()
        self._given, self._held = [], []
        return text

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._given, skip_special_tokens=False)
        after = self._tokenizer.decode([*self._given, *self._held], skip_special_tokens=False)
        return after[len(before) :]
