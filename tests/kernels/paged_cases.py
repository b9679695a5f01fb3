"""Paged caches where everything that is stale is NaN, and batches over them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from onecard.kernels.paged_attention import PagedBatch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMPLEMENTATIONS = ("reference", "triton") if DEVICE == "cuda" else ("reference", "cpu", "triton")
"""What can run on the device; Triton's kernels run compiled on a card, else in its interpreter."""


@dataclass(frozen=True)
class Paged:
    """One layer's caches inside an arena of NaN, and the tokens that were put there: k, v `[length, Hk, D]`
    each."""

    k_cache: torch.Tensor
    v_cache: torch.Tensor
    batch: PagedBatch
    tokens: list[tuple[torch.Tensor, torch.Tensor]]


def build_paged(
    queries: Sequence[int],
    lengths: Sequence[int],
    kv_heads: int,
    dim: int,
    dtype: torch.dtype = torch.float32,
    block_size: int = 4,
    num_blocks: int = 64,
) -> Paged:
    """Sequences of `lengths`, the last `queries` tokens of each asking; leading single ones are decodes."""
    arena = torch.full(
        (num_blocks, 2, 2, block_size, kv_heads, dim), float("nan"), dtype=dtype, device=DEVICE
    )
    k_cache, v_cache = arena[:, 1, 0], arena[:, 1, 1]
    free = torch.randperm(num_blocks).tolist()
    width = max(1, max(-(-n // block_size) for n in lengths)) + 1
    tables = torch.full((len(lengths), width), -7, dtype=torch.int32)
    slots, tokens = [], []
    for i, (asked, length) in enumerate(zip(queries, lengths, strict=True)):
        blocks = [free.pop() for _ in range(-(-length // block_size))]
        tables[i, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        k, v = (torch.randn(length, kv_heads, dim, device=DEVICE).to(dtype) for _ in range(2))
        for t in range(length):
            k_cache[blocks[t // block_size], t % block_size] = k[t]
            v_cache[blocks[t // block_size], t % block_size] = v[t]
        tokens.append((k, v))
        own = [blocks[t // block_size] * block_size + t % block_size for t in range(length)]
        slots += own[length - asked :] if length else [-1] * asked
    starts = torch.tensor([0, *queries]).cumsum(0)
    decodes = next((i for i, n in enumerate(queries) if n != 1), len(queries))
    batch = PagedBatch(
        cu_seqlens_q=starts.to(DEVICE, torch.int32),
        seq_lens=torch.tensor(lengths, dtype=torch.int32, device=DEVICE),
        block_tables=tables.to(DEVICE),
        slot_mapping=torch.tensor(slots, device=DEVICE),
        max_seqlen_q=max(queries),
        max_seqlen_k=max(lengths),
        num_decodes=decodes,
    )
    return Paged(k_cache, v_cache, batch, tokens)
