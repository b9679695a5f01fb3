"""Norms: the parameters of `kernels.rms_norm` and `kernels.layer_norm`."""

import torch
from torch import nn

from onecard.engines.layers.linear import empty_parameter
from onecard.engines.layers.precision import Precision
from onecard.kernels.layer_norm import layer_norm
from onecard.kernels.rms_norm import add_rms_norm, rms_norm


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float, precision: Precision):
        super().__init__()
        self.weight = empty_parameter((size,), precision.compute)
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight, self.eps)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(the norm of x + residual, x + residual)."""
        return add_rms_norm(x, residual, self.weight, self.eps)


class LayerNorm(nn.Module):
    def __init__(self, size: int, eps: float, precision: Precision):
        super().__init__()
        self.weight = empty_parameter((size,), precision.compute)
        self.bias = empty_parameter((size,), precision.compute)
        self.eps = eps

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """The norm of x, or of x + residual."""
        return layer_norm(x, self.weight, self.bias, self.eps, residual)
