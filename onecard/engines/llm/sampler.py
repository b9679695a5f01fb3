"""From logits to tokens: each sequence's own edits, its own random stream, and log-probabilities if asked."""

from dataclasses import dataclass

import numpy as np
import torch

from onecard.engines.llm.request import Sequence
from onecard.engines.llm.rows import RequestRows
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
    def __init__(self, rows: RequestRows, device: torch.device):
        self._rows = rows
        self._device = device

    def __call__(self, logits: torch.Tensor, sequences: list[Sequence]) -> Sampled:
        """`logits [S, V]` float32, one row a sequence; edited in place."""
        wanted = [i for i, s in enumerate(sequences) if s.request.sampling.logprobs is not None]
        raw = logits[wanted].clone() if wanted else None
        for i, sequence in enumerate(sequences):
            if sequence.processor is not None:
                sequence.processor.apply(logits[i])
        token_ids = self._sample(logits, sequences)
        if raw is None:
            return Sampled(token_ids, None, [])
        num_top = max(sequences[i].request.sampling.logprobs or 0 for i in wanted)
        return Sampled(token_ids, compute_logprobs(raw, token_ids[wanted], num_top), wanted)

    def _sample(self, logits: torch.Tensor, sequences: list[Sequence]) -> torch.Tensor:
        rows, row_ids = self._rows, [s.row for s in sequences]
        if not rows.temperature[row_ids].any():
            return logits.argmax(dim=-1)

        def gather(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array[row_ids]).to(self._device)

        steps = torch.tensor([s.num_output_tokens for s in sequences], dtype=torch.int64, device=self._device)
        return sample(
            logits,
            gather(rows.temperature),
            gather(rows.top_k),
            gather(rows.top_p),
            gather(rows.min_p),
            gather(rows.seed),
            steps,
        )
