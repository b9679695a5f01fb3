"""Embedding tables: stored as the weights are, read in the compute dtype."""

import torch
import torch.nn.functional as F
from torch import nn

from onecard.engines.layers.linear import empty_parameter
from onecard.engines.layers.precision import Precision


class Embedding(nn.Module):
    """`[T]` int64 ids to `[T, size]` rows of the table."""

    def __init__(self, count: int, size: int, precision: Precision):
        super().__init__()
        self.weight = empty_parameter((count, size), precision.storage)
        self.compute = precision.compute

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, self.weight).to(self.compute)
