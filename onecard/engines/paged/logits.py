"""What a request does to its own logits before sampling (bias, minimum length, penalties), and what it sees
of them: log-probabilities."""

from collections import Counter
from copy import copy
from dataclasses import dataclass, fields

import torch

from onecard.engines.api import SamplingParams


def wants_processing(params: SamplingParams) -> bool:
    return bool(
        params.logit_bias
        or params.min_tokens
        or params.repetition_penalty != 1.0
        or params.presence_penalty
        or params.frequency_penalty
    )


class LogitsProcessor:
    """One answer's own edits of its logits row, in vLLM's order: bias, minimum length, penalties.

    Repetition penalty (Keskar et al. 2019, CTRL) divides positive and multiplies negative logits of every
    token seen in prompt or answer; presence and frequency penalties are OpenAI's, over the answer alone.
    """

    def __init__(self, params: SamplingParams, prompt: list[int], stop_ids: list[int], device: torch.device):
        self.params = params
        self._device = device
        self._stop_ids = torch.tensor(
            sorted({*stop_ids, *params.stop_token_ids}), dtype=torch.int64, device=device
        )
        self._bias_ids = torch.tensor([i for i, _ in params.logit_bias], dtype=torch.int64, device=device)
        self._bias = torch.tensor([b for _, b in params.logit_bias], dtype=torch.float32, device=device)
        seen = set(prompt) if params.repetition_penalty != 1.0 else set()
        self._prompt_ids = torch.tensor(sorted(seen), dtype=torch.int64, device=device)
        self._counts: Counter[int] = Counter()
        self._num_output = 0

    def another(self) -> "LogitsProcessor":
        """For another answer to the same prompt, and as cheap as can be. Before the first token."""
        twin = copy(self)
        twin._counts = Counter()
        return twin

    def append(self, token_id: int) -> None:
        self._num_output += 1
        self._counts[token_id] += 1

    def apply(self, logits: torch.Tensor) -> None:
        """Edit one row `[V]` float32 in place."""
        if len(self._bias_ids):
            logits.index_add_(0, self._bias_ids, self._bias)
        if self._num_output < self.params.min_tokens and len(self._stop_ids):
            logits.index_fill_(0, self._stop_ids, float("-inf"))
        if self.params.repetition_penalty != 1.0:
            self._penalise_repetition(logits)
        if self._counts and (self.params.presence_penalty or self.params.frequency_penalty):
            self._penalise_presence(logits)

    def _penalise_repetition(self, logits: torch.Tensor) -> None:
        answered = torch.tensor(list(self._counts), dtype=torch.int64, device=self._device)
        seen = torch.cat([self._prompt_ids, answered])  # one that is in both gets the same value twice
        values = logits[seen]
        penalty = self.params.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)

    def _penalise_presence(self, logits: torch.Tensor) -> None:
        ids = torch.tensor(list(self._counts), dtype=torch.int64, device=self._device)
        counts = torch.tensor(list(self._counts.values()), dtype=torch.float32, device=self._device)
        logits[ids] -= self.params.presence_penalty + self.params.frequency_penalty * counts


@dataclass(frozen=True)
class Logprobs:
    """Of R tokens: `chosen [R]` and how many are at least as likely, `ranks [R]`, and the K most likely in
    each place, `top_values [R, K]`, `top_ids [R, K]`.

    Under the raw logits: before bias, penalties, temperature and truncation (vLLM's `raw_logprobs`).
    """

    chosen: torch.Tensor
    ranks: torch.Tensor
    top_values: torch.Tensor
    top_ids: torch.Tensor

    def on_host(self) -> "Logprobs":
        """Waits for the device."""
        return Logprobs(**{name.name: getattr(self, name.name).cpu() for name in fields(self)})


def compute_logprobs(logits: torch.Tensor, token_ids: torch.Tensor, num_top: int) -> Logprobs:
    """`logits [R, V]` float32, `token_ids [R]` int64."""
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(1, token_ids[:, None])
    ranks = (logprobs >= chosen).sum(dim=-1)
    top = torch.topk(logprobs, num_top, dim=-1)
    return Logprobs(chosen.squeeze(1), ranks, top.values, top.indices)
