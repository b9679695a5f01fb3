"""From logits to tokens: each sequence's own edits, its own random stream, and log-probabilities if asked."""

from dataclasses import dataclass

import numpy as np
import torch

from onecard.engines.paged.rows import RequestRows
from onecard.engines.paged.scheduler import ScheduledSequence
from onecard.engines.runtime.staging import Staging
from onecard.kernels.sampling import sample


@dataclass(frozen=True)
class Logprobs:
    """Of R tokens: `chosen [R]`, and the K most likely in each place, `top_values [R, K]`, `top_ids [R, K]`.

    Under the raw logits: before bias, penalties, temperature and truncation (vLLM's `raw_logprobs`).
    """

    chosen: torch.Tensor
    top_values: torch.Tensor
    top_ids: torch.Tensor


@dataclass(frozen=True)
class Sampled:
    """`token_ids [S]` int64; `logprobs` of the sequences at `logprob_rows` of them."""

    token_ids: torch.Tensor
    logprobs: Logprobs | None
    logprob_rows: list[int]


def compute_logprobs(logits: torch.Tensor, token_ids: torch.Tensor, num_top: int) -> Logprobs:
    """`logits [R, V]` float32, `token_ids [R]` int64."""
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(1, token_ids[:, None]).squeeze(1)
    top = torch.topk(logprobs, num_top, dim=-1)
    return Logprobs(chosen, top.values, top.indices)


class Sampler:
    """The card's rows are told each token, for a step that is launched before the token is read."""

    def __init__(self, rows: RequestRows, staging: Staging):
        self._rows = rows
        self._staging = staging

    def __call__(self, logits: torch.Tensor, items: list[ScheduledSequence]) -> Sampled:
        """`logits [S, V]` float32, one row a sequence; edited in place."""
        wanted = [i for i, item in enumerate(items) if item.sequence.request.sampling.logprobs is not None]
        raw = logits[wanted].clone() if wanted else None
        for i, item in enumerate(items):
            if item.sequence.processor is not None:
                item.sequence.processor.apply(logits[i])
        token_ids = self._sample(logits, items)
        if raw is None:
            return Sampled(token_ids, None, [])
        num_top = max(items[i].sequence.request.sampling.logprobs or 0 for i in wanted)
        return Sampled(token_ids, compute_logprobs(raw, token_ids[wanted], num_top), wanted)

    def _sample(self, logits: torch.Tensor, items: list[ScheduledSequence]) -> torch.Tensor:
        rows, row_ids = self._rows, np.array([item.sequence.row for item in items], dtype=np.int64)
        arrays: list[np.ndarray] = [row_ids]
        greedy = not rows.temperature[row_ids].any()
        if not greedy:
            steps = np.array([item.output_index for item in items], dtype=np.int64)
            params = (rows.temperature, rows.top_k, rows.top_p, rows.min_p, rows.seed)
            arrays += [*(param[row_ids] for param in params), steps]
        on_card, *sampling = self._staging.to_device(arrays)
        token_ids = logits.argmax(dim=-1) if greedy else sample(logits, *sampling)
        rows.last_token.index_copy_(0, on_card, token_ids)
        return token_ids
