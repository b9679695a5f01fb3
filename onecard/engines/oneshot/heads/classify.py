"""Scores of texts by a model's own classification head, which reads the first token's hidden state."""

from typing import Protocol, cast

import torch
from torch import nn

from onecard.engines.layers.forward_batch import EncodeBatch


class Classifier(Protocol):
    """What a model with a classification head has."""

    def classify(self, first: torch.Tensor, batch: EncodeBatch | None) -> torch.Tensor: ...


def classify(hidden: torch.Tensor, cu_seqlens: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """hidden `[T, H]`, cu_seqlens `[B + 1]` int32, no text empty -> logits `[B, num_labels]` float32."""
    return cast(Classifier, model).classify(hidden[cu_seqlens[:-1].long()], None)
