"""The gate of a SwiGLU MLP."""

import torch
import torch.nn.functional as F

from onecard.kernels.dispatch import op


@op
def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """`silu(x[:, :I]) * x[:, I:]` (Shazeer 2020): x `[T, 2I]`, gate first -> a new `[T, I]` of x's dtype."""
    raise NotImplementedError


@silu_and_mul.reference
def _(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


@silu_and_mul.triton
def _(x: torch.Tensor) -> torch.Tensor:
    from onecard.kernels.triton.activation import launch

    return launch(x)
