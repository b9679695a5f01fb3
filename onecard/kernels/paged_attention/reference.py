"""Paged attention in plain torch, one sequence after another: the specification."""

import torch
import torch.nn.functional as F

from onecard.kernels.paged_attention.metadata import PagedBatch


def attend(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: PagedBatch,
    scale: float,
    sliding_window: int,
) -> torch.Tensor:
    """See `paged_attention`. Reads each sequence's own blocks; K and V keep their own number of heads."""
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    block_size, kv_heads = k_cache.shape[1], k_cache.shape[2]
    for i, length in enumerate(batch.lengths):
        start, end = batch.query_starts[i], batch.query_starts[i + 1]
        if length == 0 or start == end:
            continue
        blocks = batch.block_tables[i, : -(-length // block_size)]
        k, v = (
            cache.index_select(0, blocks).flatten(0, 1)[:length].transpose(0, 1).unsqueeze(1)
            for cache in (k_cache, v_cache)
        )
        rows = q[start:end].unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3)
        seen = visible(end - start, length, sliding_window, q.device)
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
