"""How much of a text a model can take: bounds on characters before a tokenizer sees any of it.

A tokenizer needs 20 to 500 bytes and up to some microseconds a character, so a text that can't fit must not
be encoded just to be refused. Three rules, for every model and route:

* More than `most_chars` characters are refused unread: not even the longest token of the vocabulary, over and
  over, gets so many into the context. Vocabularies that drop characters (runs of blanks, unknown words) can
  come to fewer tokens; what is left to them is `FLOOR_CHARS`.
* A longer text than `PROBE_CHARS` is read from its beginning, in steps that grow with what they find, and
  refused as soon as there are too many tokens.
* A text that is to be cut is read no further than its cut needs. What is kept is what would be kept of the
  whole; but of a text's end only if a word begins near the cut, and not inside one endless run of characters.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from onecard.engines.api import ContextLengthError

FLOOR_CHARS = 1 << 18
"""So many are always read, in steps; 0.1 s and 100 MB of a tokenizer, at worst 0.5 s."""
CEILING_CHARS, CHARS_A_TOKEN = 1 << 22, 16
"""Beyond the ceiling a text has 16 characters a token at most: a vocabulary's longest tokens are runs of
blanks or dashes, and megabytes of those are no text."""
PROBE_CHARS = 1 << 16
_BESIDE_THE_CUT = 128
"""Tokens next to a cut may be others than in the whole text, so more are read than are kept."""


@dataclass(frozen=True)
class Fit:
    """What a text may come to: `tokens` are of use to a context of `max_model_len`.

    `keep` says what becomes of more. `all`: the text is refused. `first`, `last`: whoever asked cuts there.
    `count`: it is encoded all the same, unless its characters are too many. `name` (of a request's text, by
    its index) and `param` are for errors.
    """

    max_model_len: int
    tokens: int
    keep: Literal["all", "first", "last", "count"] = "all"
    param: str = "prompt"
    name: Callable[[int], str] = lambda index: "the prompt"

    @property
    def cuts(self) -> bool:
        return self.keep in ("first", "last")

    def refusal(self, size: str, index: int = 0) -> "TextTooLongError":
        return TextTooLongError(self, size, index)

    def check_tokens(self, count: int, index: int = 0, at_least: bool = False) -> None:
        """Raises `TextTooLongError` where so many are refused."""
        if self.keep == "all" and count > self.tokens:
            raise self.refusal(f"{'at least ' if at_least else ''}{count} tokens", index)

    def check_chars(self, count: int, longest_token: int, index: int = 0) -> None:
        """Raises `TextTooLongError` where so many can't fit."""
        most = most_chars(self.tokens, longest_token)
        if not self.cuts and count > most:
            raise self.refusal(f"{count} characters (no more than {most} can fit)", index)


class TextTooLongError(ContextLengthError):
    """A text doesn't fit, whatever the answer; `size` says how long it is, as far as it was read."""

    def __init__(self, fit: Fit, size: str, index: int = 0):
        super().__init__(fit.max_model_len, fit.tokens, param=fit.param)
        advice = "" if fit.keep == "count" else ", or set 'truncate_prompt_tokens' to -1"
        self.message = (
            f"This model's maximum context length is {fit.max_model_len} tokens. However, you requested "
            f"{size} in {fit.name(index)}. Please reduce the length of the input{advice}."
        )
        self.args = (self.message,)


def most_chars(tokens: int, longest_token: int) -> int:
    """Of a text that may come to `tokens`; `longest_token`: characters of the vocabulary's longest one."""
    ceiling = max(CEILING_CHARS, CHARS_A_TOKEN * tokens)
    return max(FLOOR_CHARS, min(tokens * longest_token, ceiling))


def encode_within(
    encode: Callable[[str], list[int]], text: str, fit: Fit, longest_token: int, index: int = 0
) -> list[int]:
    """The ids of `text`; of a text that is to be cut, more than `fit.tokens` of the end that is kept.

    Raises `TextTooLongError` for a long text, as early as it can; a shorter one's ids may still be too many.
    """
    fit.check_chars(len(text), longest_token, index)
    most, size = most_chars(fit.tokens, longest_token), PROBE_CHARS
    enough = fit.tokens + _BESIDE_THE_CUT
    while fit.keep != "count" and size < len(text):
        ids = encode(_last(text, size) if fit.keep == "last" else text[:size])
        if len(ids) >= enough:
            fit.check_tokens(len(ids), index, at_least=True)
            return ids
        if size >= most:
            raise fit.refusal(f"{len(text)} characters (more than {most} are not read)", index)
        size = min(max(2 * size, size * enough // max(len(ids), 1)), 16 * size, most)
    return encode(text)


def _last(text: str, size: int) -> str:
    """The last `size` characters and a little more: from where a word begins, if there is one near."""
    start = len(text) - size
    for blank in ("\n", " "):
        found = text.rfind(blank, max(start - PROBE_CHARS // 16, 0), start)
        if found > 0 and not text[found - 1].isspace():
            return text[found:]
    return text[start:]
