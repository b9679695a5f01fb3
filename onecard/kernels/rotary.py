"""Rotary position embedding, in place."""

import torch

from onecard.kernels.dispatch import op


@op(triton="onecard.kernels.triton.rotary:launch")
def rotary(q: torch.Tensor, k: torch.Tensor, cos_sin: torch.Tensor) -> None:
    """Turn pairs `(x[i], x[i + R/2])` of each head by its token's angles, in place.

    Su et al. 2021, in GPT-NeoX's order of halves. q `[T, Hq, D]`, k `[T, Hk, D]`: rows may be strided, heads
    and last dimension are packed; cos_sin `[T, R]`: each token's cosines of R/2 angles, then their sines.
    Only the first R <= D dimensions are turned. Arithmetic in the wider of x's and cos_sin's dtypes.
    """
    cos, sin = cos_sin.unsqueeze(1).chunk(2, dim=-1)
    half = cos.shape[-1]
    for heads in (q, k):
        first, second = heads[..., :half], heads[..., half : 2 * half]
        turned = first * cos - second * sin
        second.copy_(second * cos + first * sin)
        first.copy_(turned)


@rotary.cpu
def _(q: torch.Tensor, k: torch.Tensor, cos_sin: torch.Tensor) -> None:
    if q.dtype != cos_sin.dtype:
        rotary.run_reference(q, k, cos_sin)
        return
    cos, sin = cos_sin.unsqueeze(1).chunk(2, dim=-1)
    half = cos.shape[-1]
    for heads in neighbours(q, k):
        first, second = heads[..., :half], heads[..., half : 2 * half]
        crossed = first * sin
        first.mul_(cos).addcmul_(second, sin, value=-1)
        second.mul_(cos).add_(crossed)


def neighbours(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """q and k as one view where they are neighbours in a fused projection: half as many calls."""
    _, heads, dim = q.shape
    adjacent = k.data_ptr() == q.data_ptr() + heads * dim * q.element_size() and q.stride() == k.stride()
    if adjacent and q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr():
        return (q.as_strided((q.shape[0], heads + k.shape[1], dim), q.stride(), q.storage_offset()),)
    return q, k
