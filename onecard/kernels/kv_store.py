"""Put new K and V where the block table says."""

import torch

from onecard.kernels.dispatch import op


@op(triton="onecard.kernels.triton.kv_store:launch")
def kv_store(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """Write row t of k and v to slot `slot_mapping[t] = block_id * block_size + offset` of the caches.

    k, v `[T, Hk, D]` (rows may be strided); k_cache, v_cache `[n, block_size, Hk, D]`, strided views of the
    arena, written in place; slot_mapping `[T]` int64, -1: store nothing. Slots of one call are distinct.
    """
    if slot_mapping.numel() == 0:
        return
    if int(slot_mapping.min()) < 0:
        kept = (slot_mapping >= 0).nonzero().squeeze(1)
        k, v, slot_mapping = k[kept], v[kept], slot_mapping[kept]
    block_size = k_cache.shape[1]
    where = (slot_mapping // block_size, slot_mapping % block_size)
    k_cache.index_put_(where, k)
    v_cache.index_put_(where, v)
