"""The tokens of a vocabulary: which have a role, and what text one stands for.

Byte-level BPE (GPT-2, Llama 3, Qwen) writes each byte as one printable character; SentencePiece (Llama 2,
Mistral, Gemma) writes a space as U+2581 and lone bytes as `<0xAB>`; WordPiece marks continuations with
`##`. The kind is read from the tokenizer's decoder, so it needs no list of models.
"""

import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal


@dataclass(frozen=True)
class SpecialTokens:
    """By id, and by text for chat templates: `names` maps a role (`bos_token`, ...) to the token."""

    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    """Ids that end an answer, the tokenizer's own first."""
    pad_token_id: int | None = None
    names: dict[str, str] = field(default_factory=dict)


SpellingKind = Literal["byte_level", "sentencepiece", "other"]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")
_SPACE = "\u2581"


@cache
def byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 for itself, the other bytes as characters from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in plain}
    others = [byte for byte in range(256) if byte not in alphabet.values()]
    return alphabet | {chr(0x100 + i): byte for i, byte in enumerate(others)}


@dataclass(frozen=True)
class TokenSpelling:
    """`strips_leading_space`: decoding drops one space (the dummy prefix) at the very start of a text."""

    kind: SpellingKind
    strips_leading_space: bool = False
    continuation_prefix: str = ""

    def token_bytes(self, piece: str) -> bytes:
        if self.kind == "byte_level":
            alphabet = byte_alphabet()
            if all(character in alphabet for character in piece):
                return bytes(alphabet[character] for character in piece)
            return piece.encode("utf-8")
        if self.kind == "sentencepiece":
            byte = _BYTE_TOKEN.match(piece)
            return bytes([int(byte[1], 16)]) if byte else piece.replace(_SPACE, " ").encode("utf-8")
        return piece.removeprefix(self.continuation_prefix).encode("utf-8")


def spelling_of(decoder: dict[str, Any] | None) -> TokenSpelling:
    """The spelling that belongs to a `tokenizers` decoder, given as its JSON description."""
    steps = _flatten(decoder)
    kinds = {step["type"] for step in steps}
    if kinds == {"ByteLevel"}:
        return TokenSpelling("byte_level")
    if "Metaspace" in kinds and kinds <= {"Metaspace", "ByteFallback", "Fuse"}:
        metaspace = next(step for step in steps if step["type"] == "Metaspace")
        return TokenSpelling("sentencepiece", metaspace.get("prepend_scheme", "always") != "never")
    if "ByteFallback" in kinds and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip"}:
        return TokenSpelling(
            "sentencepiece", any(step["type"] == "Strip" and step["start"] == 1 for step in steps)
        )
    if kinds == {"WordPiece"}:
        return TokenSpelling("other", continuation_prefix=steps[0].get("prefix", "##"))
    return TokenSpelling("other")


def _flatten(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [step for child in decoder["decoders"] for step in _flatten(child)]
    return [decoder]
