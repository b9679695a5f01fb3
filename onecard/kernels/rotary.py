"""Rotary position embedding, in place."""

import torch

from onecard.kernels.dispatch import op


@op
def rotary(q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor) -> None:
    """Turn pairs `(x[i], x[i + R/2])` of each head by its position's angle, in place (Su et al. 2021; "neox" halves).

    q `[T, Hq, D]`, k `[T, Hk, D]`: rows may be strided, heads and last dimension are packed; positions `[T]` int64;
    cos_sin `[P, R]` with row p = cat(cos, sin) of R/2 angles each. Only the first R <= D dimensions are turned.
    """
    raise NotImplementedError


@rotary.reference
def _(q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor) -> None:
    cos, sin = cos_sin.index_select(0, positions).unsqueeze(1).chunk(2, dim=-1)
    half = cos.shape[-1]
    for heads in (q, k):
        first, second = heads[..., :half], heads[..., half : 2 * half]
        turned = first * cos - second * sin
        second.copy_(second * cos + first * sin)
        first.copy_(turned)


@rotary.triton
def _(q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor) -> None:
    from onecard.kernels.triton.rotary import launch

    launch(q, k, positions, cos_sin)
