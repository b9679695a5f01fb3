"""Attention of packed query tokens over K/V that lie in blocks of the arena."""

from onecard.kernels.paged_attention.api import paged_attention
from onecard.kernels.paged_attention.metadata import PagedBatch

__all__ = ["PagedBatch", "paged_attention"]
