"""Paged attention: the contract, and its specification, one sequence after another."""

import torch
import torch.nn.functional as F

from onecard.kernels.dispatch import op
from onecard.kernels.paged_attention.metadata import PagedBatch


@op(triton="onecard.kernels.triton.paged_attention:launch", cpu="onecard.kernels.paged_attention.cpu:attend")
def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    paged: PagedBatch,
    scale: float,
    sliding_window: int = 0,
    causal: bool = True,
) -> torch.Tensor:
    """Softmax attention of each query token over its sequence's K and V in blocks (paged: Kwon et al. 2023).

    q `[T, Hq, D]` (rows may be strided); k_cache, v_cache `[n, block_size, Hk, D]`, strided views of the
    arena that are read in place and hold this step's tokens already; Hq is a multiple of Hk and heads share
    in order (GQA: query head h reads K head h // (Hq / Hk)). Causal, the query at position p sees keys 0 ..
    p, or p - w + 1 .. p with sliding_window w > 0. Else (cross-attention: the keys are not the queries' own)
    it sees all keys, be they more or fewer than the queries, and there is no window. Bytes past a sequence's
    length are never used: they may be another engine's, NaN among them. scale > 0. Returns a new contiguous
    `[T, Hq, D]`; rows of sequences of length 0 are zeros, rows of no sequence undefined.
    """
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    block_size, kv_heads = k_cache.shape[1], k_cache.shape[2]
    for i, length in enumerate(paged.lengths):
        start, end = paged.query_starts[i], paged.query_starts[i + 1]
        if length == 0 or start == end:
            continue
        blocks = paged.block_tables[i, : -(-length // block_size)]
        k, v = (
            cache.index_select(0, blocks).flatten(0, 1)[:length].transpose(0, 1).unsqueeze(1)
            for cache in (k_cache, v_cache)
        )
        rows = q[start:end].unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3)
        seen = visible(end - start, length, sliding_window, q.device) if causal else None
        heads = rows.shape[1]
        result = F.scaled_dot_product_attention(
            rows, k.expand(-1, heads, -1, -1), v.expand(-1, heads, -1, -1), attn_mask=seen, scale=scale
        )
        out[start:end] = result.permute(2, 0, 1, 3).flatten(1, 2)
    return out


def visible(queries: int, length: int, window: int, device: torch.device) -> torch.Tensor | None:
    """Which of `length` keys each of the last `queries` positions sees, `[queries, length]`; None: all."""
    if queries == 1 and not 0 < window < length:
        return None
    position = torch.arange(length - queries, length, device=device).unsqueeze(1)
    key = torch.arange(length, device=device)
    seen = key <= position
    return seen & (key > position - window) if window > 0 else seen
