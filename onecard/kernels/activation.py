"""The gate of a SwiGLU MLP."""

import torch
import torch.nn.functional as F

from onecard.kernels.dispatch import op


@op(triton="onecard.kernels.triton.activation:launch")
def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """`silu(x[:, :I]) * x[:, I:]` (Shazeer 2020): x `[T, 2I]`, gate first -> a new `[T, I]` of x's dtype."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)
