"""Attention of packed sequences over themselves: encoders, without padding."""

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F

from onecard.kernels.dispatch import op


@op(triton="onecard.kernels.triton.varlen_attention:launch", cuda="onecard.kernels.torch_varlen:launch")
def varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scale: float,
    causal: bool = False,
) -> torch.Tensor:
    """Softmax attention inside each sequence: rows cu_seqlens[i] .. cu_seqlens[i + 1] see one another only.

    q, k, v `[T, H, D]` (rows may be strided), cu_seqlens `[B + 1]` int32, max_seqlen the longest sequence.
    Returns a new contiguous `[T, H, D]`.
    """
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    starts = cu_seqlens.tolist()
    for start, end in pairwise(starts):
        if end > start:
            rows = F.scaled_dot_product_attention(
                q[:, :, start:end], k[:, :, start:end], v[:, :, start:end], is_causal=causal, scale=scale
            )
            out[start:end] = rows[0].transpose(0, 1)
    return out


@varlen_attention.cpu
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scale: float,
    causal: bool = False,
) -> torch.Tensor:
    out = torch.empty(q.shape, dtype=q.dtype)
    for rows, length in _equal_runs(cu_seqlens.tolist()):
        queries, keys, values = (x[rows].unflatten(0, (-1, length)).transpose(1, 2) for x in (q, k, v))
        result = F.scaled_dot_product_attention(queries, keys, values, is_causal=causal, scale=scale)
        out[rows] = result.transpose(1, 2).flatten(0, 1)
    return out


def _equal_runs(starts: list[int]) -> Iterator[tuple[slice, int]]:
    """Rows of neighbours of equal length, and that length: one call each, if the caller sorts by length."""
    first = 0
    for i, (start, end) in enumerate(pairwise(starts)):
        length = end - start
        last = i + 2 == len(starts) or starts[i + 2] - end != length
        if last and length:
            yield slice(starts[first], end), length
        if last:
            first = i + 1
