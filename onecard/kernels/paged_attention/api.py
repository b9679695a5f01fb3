"""Paged attention: the contract, and which code fulfils it where."""

import torch

from onecard.kernels.dispatch import op
from onecard.kernels.paged_attention.metadata import PagedBatch


@op
def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: PagedBatch,
    scale: float,
    sliding_window: int = 0,
) -> torch.Tensor:
    """Causal softmax attention of each query token over its sequence's K and V (paged: Kwon et al. 2023).

    q `[T, Hq, D]` (rows may be strided); k_cache, v_cache `[n, block_size, Hk, D]`, strided views of the
    arena that are read in place and hold this step's tokens already; Hq is a multiple of Hk and heads share
    in order (GQA: query head h reads K head h // (Hq / Hk)). The query at position p sees keys 0 .. p, or p -
    w + 1 .. p with sliding_window w > 0. Bytes past a sequence's length are never used: they may be another
    engine's, NaN among them. Returns a new contiguous `[T, Hq, D]`; rows of sequences of length 0 are zeros.
    """
    raise NotImplementedError


@paged_attention.reference
def _(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: PagedBatch,
    scale: float,
    sliding_window: int = 0,
) -> torch.Tensor:
    from onecard.kernels.paged_attention.reference import attend

    return attend(q, k_cache, v_cache, batch, scale, sliding_window)


@paged_attention.cpu
def _(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: PagedBatch,
    scale: float,
    sliding_window: int = 0,
) -> torch.Tensor:
    from onecard.kernels.paged_attention.cpu import attend

    return attend(q, k_cache, v_cache, batch, scale, sliding_window)


@paged_attention.triton
def _(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: PagedBatch,
    scale: float,
    sliding_window: int = 0,
) -> torch.Tensor:
    from onecard.kernels.triton.paged_attention import launch

    return launch(q, k_cache, v_cache, batch, scale, sliding_window)
