"""Root-mean-square norm, alone or with the residual sum before it."""

import torch

from onecard.kernels.dispatch import op


@op(triton="onecard.kernels.triton.rms_norm:launch")
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension (Zhang & Sennrich 2019).

    x `[..., D]`: rows may be strided, the last dimension is contiguous; weight `[D]`. Squares are summed in
    float32 whatever the dtype. Returns a new contiguous tensor of x's shape and dtype.
    """
    if x.dtype == torch.float32:
        return torch.rms_norm(x, weight.shape, weight, eps)
    wide = x.float()
    return torch.rms_norm(wide, weight.shape, weight.float(), eps).to(x.dtype)


@rms_norm.cpu
def _(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    # torch.rms_norm is a chain of nine operations here; at 2,048 rows of 576 it takes 25 times as long as
    # this one.
    if x.dtype != torch.float32:
        return rms_norm.run_reference(x, weight, eps)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    mean = torch.addcmul(x.new_full((), eps), length, length, value=1.0 / x.shape[-1])
    return (x * mean.rsqrt_()).mul_(weight)


@op(triton="onecard.kernels.triton.rms_norm:launch_add")
def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(rms_norm(x + residual), x + residual)`: what stands between two sub-layers of a decoder.

    x, residual `[T, D]`, weight `[D]`. Neither input is written to. The sum is rounded to x's dtype before
    the norm reads it, so that both results belong to the same numbers.
    """
    total = x + residual
    return rms_norm.run_reference(total, weight, eps), total


@add_rms_norm.cpu
def _(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    total = x + residual
    return rms_norm.run_cpu(total, weight, eps), total
