"""Log-probabilities in the shapes of chat, completions and `prompt_logprobs`."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from onecard.engines.api import GenerationStream, TokenLogprob

MIN_LOGPROB = -9999.0
"""JSON knows no infinity; vLLM's stand-in for a token that can't come."""


def chat_logprobs(entries: Sequence[TokenLogprob], as_ids: bool = False) -> dict[str, Any]:
    """`choices[].logprobs` of chat; tokens as text, or `as_ids` (vLLM's `return_tokens_as_token_ids`)."""

    def shown(entry: TokenLogprob) -> dict[str, Any]:
        token = id_name(entry.token_id) if as_ids else entry.token
        return {"token": token, "logprob": _finite(entry.logprob), "bytes": list(entry.token_bytes)}

    content = [{**shown(e), "top_logprobs": [shown(a) for a in e.top]} for e in entries]
    return {"content": content, "refusal": None}


@dataclass
class CompletionLogprobs:
    """`choices[].logprobs` of completions, piece by piece: offsets go on from piece to piece.

    An offset says how many characters of the text are whole before the token: tokens that share a character
    share its offset. Tokens are shown as text, or `as_ids`.
    """

    as_ids: bool = False
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
            token = self._name(entry)
            self._append(token, _finite(entry.logprob), self._top(entry, token), entry.token_bytes)

    def _name(self, entry: TokenLogprob) -> str:
        return id_name(entry.token_id) if self.as_ids else token_name(entry)

    def _top(self, entry: TokenLogprob, token: str) -> dict[str, float]:
        # The chosen token is always among them, as at OpenAI: up to logprobs + 1 entries.
        top = {token: _finite(entry.logprob)}
        for other in entry.top:
            if other.token_id != entry.token_id:
                name = self._name(other)
                # Two tokens may spell the same text: the likelier one has the name, as they come in order.
                top[id_name(other.token_id) if name in top else name] = _finite(other.logprob)
        return dict(sorted(top.items(), key=lambda item: -item[1]))

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


def prompt_logprobs(stream: GenerationStream, asked: int | None) -> list[dict[str, Any] | None] | None:
    """vLLM's shape: for each prompt token, by token id, its log-probability and the likeliest in its place.

    None where nobody asked.
    """
    if asked is None or stream.prompt_logprobs is None:
        return None
    return [None if entry is None else _ranked(entry) for entry in stream.prompt_logprobs]


def _ranked(entry: TokenLogprob) -> dict[str, Any]:
    return {
        str(each.token_id): {
            "logprob": _finite(each.logprob),
            "rank": each.rank,
            "decoded_token": each.token,
        }
        for each in (entry, *entry.top)
    }


def token_name(entry: TokenLogprob) -> str:
    """The token as text; one that isn't whole characters by its bytes, as OpenAI does: `bytes:\\xf0\\x9f`."""
    try:
        return entry.token_bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(map(_byte, entry.token_bytes))


def _byte(value: int) -> str:
    return chr(value) if 0x20 <= value < 0x7F and value != ord("\\") else f"\\x{value:02x}"


def id_name(token_id: int) -> str:
    """vLLM's name for a token that is told by its id."""
    return f"token_id:{token_id}"


def _finite(logprob: float) -> float:
    return max(logprob, MIN_LOGPROB)
