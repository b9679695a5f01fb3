"""The gated MLP of Llama's family (SwiGLU, Shazeer 2020)."""

import torch
from torch import nn

from onecard.engines.layers.forward_batch import Batch
from onecard.engines.layers.linear import Linear
from onecard.engines.layers.precision import Precision
from onecard.kernels.activation import silu_and_mul


class GatedMLP(nn.Module):
    """`down(silu(gate(x)) * up(x))`, gate and up in one product."""

    def __init__(self, hidden: int, intermediate: int, precision: Precision, bias: bool = False):
        super().__init__()
        parts = {"gate_proj": intermediate, "up_proj": intermediate}
        self.gate_up_proj = Linear(hidden, parts, precision, bias)
        self.down_proj = Linear(intermediate, hidden, precision, bias)

    def forward(self, x: torch.Tensor, batch: Batch | None) -> torch.Tensor:
        return self.down_proj.forward(silu_and_mul(self.gate_up_proj.forward(x, batch)), batch)
