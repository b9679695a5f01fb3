"""What running a step needs of a model."""

from typing import Protocol

import torch

from onecard.engines.layers.forward_batch import ForwardBatch


class PagedModel(Protocol):
    """Packed tokens to hidden states `[T, H]`, rows of those to logits `[N, V]` float32."""

    def __call__(self, batch: ForwardBatch) -> torch.Tensor: ...

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor: ...
