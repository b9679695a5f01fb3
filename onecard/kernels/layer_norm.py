"""Layer norm with the residual sum before it."""

import torch
import torch.nn.functional as F

from onecard.kernels.dispatch import op


@op(triton="onecard.kernels.triton.layer_norm:launch")
def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """`(y - mean(y)) / sqrt(var(y) + eps) * weight + bias` with `y = x + residual` (Ba et al. 2016).

    x, residual `[T, D]`, weight, bias `[D]`; statistics in float32. Returns a new `[T, D]` of x's dtype.
    """
    total = x if residual is None else x + residual
    return F.layer_norm(total, weight.shape, weight, bias, eps)
