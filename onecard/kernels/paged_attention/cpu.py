"""Paged attention on a CPU: decodes read the arena in place, prompts go through torch's flash kernel.

Decode, microseconds a layer at 9 query heads over 3 K/V heads of 64, float32, 30 layers visited in turn, on
2 threads (1 in brackets) of a server CPU with AVX-512. A: gather and `scaled_dot_product_attention` by
sequence. B: a gather and a masked flash call for each group of about equal length. C: this file.

    sequences x tokens          A              B             C
     1 x  128              87   (45)        57           34    (41)
     1 x 2000             295  (378)       275          215   (338)
     8 x  512             739  (959)       459          311   (585)
    16 x  512            1532 (1936)       919          592  (1038)
    16 x 2000            6790 (6945)      3986         3160  (5827)
    64 x  128            4272 (3226)      1154          621  (1126)
"""

import torch

from onecard.kernels.paged_attention.cpu_decode import DecodePlan, can_read_in_place
from onecard.kernels.paged_attention.cpu_prefill import attend_chunk
from onecard.kernels.paged_attention.metadata import PagedBatch


def attend(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    paged: PagedBatch,
    scale: float,
    sliding_window: int = 0,
    causal: bool = True,
) -> torch.Tensor:
    """See `paged_attention`."""
    out = torch.empty(q.shape, dtype=q.dtype)
    starts, first_chunk = paged.query_starts, 0
    if paged.num_decodes and can_read_in_place(q, k_cache):
        plan = _decode_plan(q, k_cache, paged, sliding_window)
        out[: paged.num_decodes] = plan.attend(q[: paged.num_decodes], k_cache, v_cache, scale)
        first_chunk = paged.num_decodes
    for i in range(first_chunk, len(paged.lengths)):
        rows = slice(starts[i], starts[i + 1])
        k, v = (_gather(cache, paged, i) for cache in (k_cache, v_cache))
        attend_chunk(q[rows], k, v, scale, sliding_window, causal, out[rows])
    out[starts[-1] :] = 0
    return out


def _decode_plan(q: torch.Tensor, k_cache: torch.Tensor, paged: PagedBatch, window: int) -> DecodePlan:
    """The step's plan, made by its first layer and shared by all that have the same shape and window."""
    key = (q.shape[1], k_cache.shape, k_cache.stride(), window)
    plan = paged.plans.get(key)
    if plan is None:
        plan = paged.plans[key] = DecodePlan(q.shape[1], k_cache, paged, window)
    return plan


def _gather(cache: torch.Tensor, paged: PagedBatch, i: int) -> torch.Tensor:
    """Sequence i's K or V as `[length, Hk, D]`: its own blocks, whole rows of the arena, in one copy."""
    n, block_size, heads, dim = cache.shape
    length = paged.lengths[i]
    blocks = paged.block_tables[i, : -(-length // block_size)]
    block_elements = block_size * heads * dim
    if cache.stride(0) % block_elements:
        return cache.index_select(0, blocks).flatten(0, 1)[:length]
    # index_select copies contiguous rows three times as fast as slices of a view with gaps
    per_block = cache.stride(0) // block_elements
    rows = cache.as_strided(
        ((n - 1) * per_block + 1, block_elements), (block_elements, 1), cache.storage_offset()
    )
    return rows.index_select(0, blocks * per_block).view(-1, heads, dim)[:length]
