"""From a sampled token to what the client gets: text, stop conditions, log-probabilities."""

from collections.abc import Sequence
from typing import overload

from onecard.engines.api import FinishReason, SamplingParams, TokenChunk, TokenLogprob
from onecard.engines.paged.logits import Logprobs
from onecard.engines.text.answer_text import IncrementalDetokenizer
from onecard.engines.text.stop_strings import StopChecker, StopStrings
from onecard.engines.text.tokenizer import Tokenizer


class SequenceOutput:
    """The output side of one answer. `append` returns what the token adds for the client."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        index: int,
        prompt_token_ids: list[int],
        max_tokens: int,
        eos_token_ids: frozenset[int],
        stops: StopStrings | None = None,
    ):
        """`stops`: of `params.stop`, where the request's answers share them."""
        self._params = params
        self._index = index
        self._max_tokens = max_tokens
        self._num_tokens = 0
        self._eos_token_ids = frozenset() if params.ignore_eos else eos_token_ids
        self._detokenizer = IncrementalDetokenizer(tokenizer, prompt_token_ids, params.skip_special_tokens)
        self._stops: StopChecker | None = None
        if params.stop:
            self._stops = StopChecker(stops or params.stop, params.include_stop_str_in_output)

    def append(self, token_id: int, logprob: TokenLogprob | None) -> TokenChunk:
        """The chunk for one more token. Once it has a finish reason, the answer is over."""
        self._num_tokens += 1
        stop_reason: int | str | None
        reason, stop_reason, text = self._check_token(token_id)
        if reason is None:
            text, stop_string = self._check_text(self._detokenizer.append([token_id]))
            if stop_string is not None:
                reason, stop_reason = "stop", stop_string
            elif self._num_tokens >= self._max_tokens:
                reason = "length"
                text += self._flush()
        return TokenChunk(
            self._index, text, (token_id,), None if logprob is None else (logprob,), reason, stop_reason
        )

    def _check_token(self, token_id: int) -> tuple[FinishReason | None, int | None, str]:
        """An end token's own text is left out; what was held back before it is not."""
        if self._num_tokens <= self._params.min_tokens:
            return None, None, ""
        if token_id in self._eos_token_ids:
            return "stop", None, self._flush()
        if token_id in self._params.stop_token_ids:
            shown = self._detokenizer.append([token_id]) if self._params.include_stop_str_in_output else ""
            return "stop", token_id, shown + self._flush()
        return None, None, ""

    def _check_text(self, text: str) -> tuple[str, str | None]:
        if self._stops is None or self._num_tokens <= self._params.min_tokens:
            return text, None
        return self._stops.append(text)

    def _flush(self) -> str:
        tail = self._detokenizer.finish()
        if self._stops is None:
            return tail
        text, matched = self._stops.append(tail)
        return text if matched is not None else text + self._stops.finish()


def token_logprobs(
    tokenizer: Tokenizer, token_ids: list[int], logprobs: Logprobs, num_top: int
) -> list[TokenLogprob]:
    """One entry a token, with its `num_top` alternatives; waits for the device."""
    chosen, ranks = logprobs.chosen.tolist(), logprobs.ranks.tolist()
    top_values, top_ids = logprobs.top_values.tolist(), logprobs.top_ids.tolist()

    def entry(token_id: int, logprob: float, rank: int, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        # JSON has no infinities; a token that can't be drawn gets OpenAI's floor.
        logprob = max(logprob, -9999.0)
        return TokenLogprob(
            token_id, tokenizer.token_string(token_id), logprob, tokenizer.token_bytes(token_id), top, rank
        )

    def alternatives(ids: list[int], values: list[float]) -> tuple[TokenLogprob, ...]:
        likeliest = zip(ids[:num_top], values[:num_top], strict=True)
        return tuple(entry(t, v, rank) for rank, (t, v) in enumerate(likeliest, start=1))

    return [
        entry(token_id, chosen[i], ranks[i], alternatives(top_ids[i], top_values[i]))
        for i, token_id in enumerate(token_ids)
    ]


class PromptEntries(Sequence[TokenLogprob | None]):
    """A prompt's log-probabilities, one entry a token; the first is None. They may be 170,000 with their
    alternatives, so they are made where they are first looked at and not on the device loop, which `add`s."""

    def __init__(self, tokenizer: Tokenizer, num_top: int):
        self._tokenizer, self._num_top = tokenizer, num_top
        self._parts: list[tuple[int, list[int], Logprobs]] = []
        self._made: list[TokenLogprob | None] = [None]

    def add(self, first: int, token_ids: list[int], logprobs: Logprobs) -> None:
        """Of the tokens from `first` on. After a preemption the prompt is computed again: what was there
        counts no more."""
        self._parts.append((first, token_ids, logprobs.on_host()))

    def _entries(self) -> list[TokenLogprob | None]:
        for first, token_ids, logprobs in self._parts:
            self._made[first:] = token_logprobs(self._tokenizer, token_ids, logprobs, self._num_top)
        self._parts = []
        return self._made

    def __len__(self) -> int:
        return len(self._entries())

    @overload
    def __getitem__(self, index: int) -> TokenLogprob | None: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenLogprob | None]: ...
    def __getitem__(self, index: int | slice) -> TokenLogprob | list[TokenLogprob | None] | None:
        return self._entries()[index]
