"""What a decoder does between its projection and its attention: turn q and k, put k and v in the cache."""

from dataclasses import dataclass

import torch

from onecard.kernels.dispatch import op
from onecard.kernels.kv_store import kv_store
from onecard.kernels.paged_attention.metadata import PagedBatch
from onecard.kernels.rotary import neighbours, rotary


@op(triton="onecard.kernels.triton.rotary_kv_store:launch")
def rotary_kv_store(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos_sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    paged: PagedBatch,
) -> None:
    """`rotary(q, k, cos_sin)`, then `kv_store` of k and v to `paged.slot_mapping`, in one pass.

    q `[T, Hq, D]` is turned in place; k, v `[T, Hk, D]` (rows may be strided, heads and the last dimension
    are packed): k's content is undefined afterwards. cos_sin `[T, R]`, R <= D, see `rotary`: one tensor for
    all layers of a batch that turn alike. k_cache, v_cache `[n, block_size, Hk, D]`, strided views of the
    arena, written in place; slot -1: store nothing.
    """
    rotary.run_reference(q, k, cos_sin)
    kv_store.run_reference(k, v, k_cache, v_cache, paged.slot_mapping)


@rotary_kv_store.cpu
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos_sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    paged: PagedBatch,
) -> None:
    key = ("rotary_kv_store", cos_sin.data_ptr(), k_cache.shape[1])
    plan = paged.plans.get(key)
    if plan is None:
        plan = paged.plans[key] = _plan(cos_sin, paged.slot_mapping, k_cache.shape[1])
    if q.dtype == cos_sin.dtype and q.shape[2] == cos_sin.shape[1]:
        for heads in neighbours(q, k):
            swapped = heads.roll(heads.shape[2] // 2, -1)
            heads.mul_(plan.cos).addcmul_(swapped, plan.sin)
    else:
        rotary.run_cpu(q, k, cos_sin)
    if plan.kept is not None:
        k, v = k[plan.kept], v[plan.kept]
    k_cache.index_put_(plan.where, k)
    v_cache.index_put_(plan.where, v)


@dataclass(frozen=True)
class _Plan:
    """What all layers of a step share.

    cos, sin `[T, 1, R]`: `x * cos + roll(x, R / 2) * sin` is x turned. where: block and offset, `[S]` each,
    of the S tokens that are stored; kept `[S]`: which ones those are, None if all. key: the tensor by whose
    address the plan is found, held so that no other one gets it.
    """

    key: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    where: tuple[torch.Tensor, torch.Tensor]
    kept: torch.Tensor | None


def _plan(cos_sin: torch.Tensor, slots: torch.Tensor, block_size: int) -> _Plan:
    cos, sin = cos_sin.unsqueeze(1).chunk(2, dim=-1)
    kept = (slots >= 0).nonzero().squeeze(1)
    slots = slots[kept]
    return _Plan(
        key=cos_sin,
        cos=torch.cat([cos, cos], dim=-1),
        sin=torch.cat([-sin, sin], dim=-1),
        where=(slots // block_size, slots % block_size),
        kept=None if len(kept) == len(cos_sin) else kept,
    )
