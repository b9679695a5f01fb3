"""Log-probabilities in the shapes of chat, completions and `prompt_logprobs`."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from onecard.engines.api import TokenLogprob

MIN_LOGPROB = -9999.0
"""JSON knows no infinity; vLLM's stand-in for a token that can't come."""


def chat_logprobs(entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    """`choices[].logprobs` of chat."""
    content = [{**_alternative(e), "top_logprobs": [_alternative(a) for a in e.top]} for e in entries]
    return {"content": content, "refusal": None}


@dataclass
class CompletionLogprobs:
    """`choices[].logprobs` of completions, piece by piece: offsets go on from piece to piece.

    An offset says how many characters of the text are whole before the token: tokens that share a character
    share its offset.
    """

    offset: int = 0
    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)
    _utf8: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )

    def add_prompt(self, entries: Sequence[TokenLogprob | None], first_token: str, text: str) -> None:
        """Append an echoed prompt, `text`, whose first token has no probability (its entry is None)."""
        rest = [entry for entry in entries if entry is not None]
        # Of the first token only the spelling is known, but the others' bytes are: the text begins with what
        # they leave over (nothing, for a special token that the text doesn't show).
        whole = text.encode()
        first = whole[: max(len(whole) - sum(len(entry.token_bytes) for entry in rest), 0)]
        self._append(first_token, None, None, first)
        self.add(rest)

    def add(self, entries: Sequence[TokenLogprob]) -> None:
        """Append tokens."""
        for entry in entries:
            self._append(entry.token, _finite(entry.logprob), _top(entry), entry.token_bytes)

    def _append(
        self, token: str, logprob: float | None, top: dict[str, float] | None, token_bytes: bytes
    ) -> None:
        self.tokens.append(token)
        self.token_logprobs.append(logprob)
        self.top_logprobs.append(top)
        self.text_offset.append(self.offset)
        self.offset += len(self._utf8.decode(token_bytes))

    def take(self) -> dict[str, Any]:
        """What was added since the last `take`."""
        taken = {
            "text_offset": self.text_offset,
            "token_logprobs": self.token_logprobs,
            "tokens": self.tokens,
            "top_logprobs": self.top_logprobs,
        }
        self.text_offset, self.token_logprobs, self.tokens, self.top_logprobs = [], [], [], []
        return taken


def prompt_logprobs(entries: Sequence[TokenLogprob | None] | None) -> list[dict[str, Any] | None] | None:
    """vLLM's shape: for each prompt token, by token id, its log-probability and the likeliest in its place.

    `rank` is null for a token that is not among those.
    """
    return None if entries is None else [None if entry is None else _ranked(entry) for entry in entries]


def _ranked(entry: TokenLogprob) -> dict[str, Any]:
    ranked = {str(entry.token_id): _prompt_entry(entry, None)}
    for rank, alternative in enumerate(sorted(entry.top, key=lambda a: -a.logprob), start=1):
        ranked[str(alternative.token_id)] = _prompt_entry(alternative, rank)
    return ranked


def _prompt_entry(entry: TokenLogprob, rank: int | None) -> dict[str, Any]:
    return {"logprob": _finite(entry.logprob), "rank": rank, "decoded_token": entry.token}


def _alternative(entry: TokenLogprob) -> dict[str, Any]:
    return {"token": entry.token, "logprob": _finite(entry.logprob), "bytes": list(entry.token_bytes)}


def _top(entry: TokenLogprob) -> dict[str, float]:
    # The chosen token is always among them, as at OpenAI: up to logprobs + 1 entries.
    top = {alternative.token: _finite(alternative.logprob) for alternative in entry.top}
    top.setdefault(entry.token, _finite(entry.logprob))
    return top


def _finite(logprob: float) -> float:
    return max(logprob, MIN_LOGPROB)
