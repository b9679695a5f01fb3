"""One vector for each text from the vectors of its tokens, on packed rows and without a loop over texts.

Modes as in sentence-transformers' Pooling and Normalize modules; sums are taken in float32.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

PoolingMode = Literal["mean", "mean_sqrt_len_tokens", "cls", "max", "lasttoken"]
POOLING_MODES: tuple[PoolingMode, ...] = get_args(PoolingMode)


@dataclass(frozen=True)
class Pooling:
    mode: PoolingMode = "mean"
    normalize: bool = False

    def __call__(
        self, hidden: torch.Tensor, cu_seqlens: torch.Tensor, model: nn.Module | None = None
    ) -> torch.Tensor:
        """hidden `[T, D]`, cu_seqlens `[B + 1]` int32, no text empty -> `[B, D]` float32."""
        vectors = self._pool(hidden, cu_seqlens)
        return F.normalize(vectors, dim=-1) if self.normalize else vectors

    def _pool(self, hidden: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
        if self.mode == "cls":
            return hidden[cu_seqlens[:-1].long()].float()
        if self.mode == "lasttoken":
            return hidden[cu_seqlens[1:].long() - 1].float()
        lengths = cu_seqlens.diff().long()
        if self.mode == "max":
            return torch.segment_reduce(hidden.float(), "max", lengths=lengths, unsafe=True)
        means = torch.segment_reduce(hidden.float(), "mean", lengths=lengths, unsafe=True)
        return means * lengths.sqrt()[:, None] if self.mode == "mean_sqrt_len_tokens" else means


def cut_dimensions(vectors: np.ndarray, dimensions: int, normalize: bool) -> np.ndarray:
    """The first `dimensions` of vectors `[N, D]` float32, made unit length where wanted."""
    cut = np.ascontiguousarray(vectors[:, :dimensions])
    if not normalize:
        return cut
    norms = np.linalg.norm(cut, axis=1, keepdims=True)
    return cut / np.maximum(norms, 1e-12)
