"""A linear layer over packed tokens. How it stores and multiplies is its method's business."""

from collections.abc import Mapping

import torch
from torch import nn

from onecard.engines.layers.linear_methods import Apply
from onecard.engines.layers.precision import Precision


class Linear(nn.Module):
    """`activation(x W^T + b)`: x `[T, in]` to `[T, out]`, both of the compute dtype.

    `parts` names the checkpoint's matrices that lie below one another in `weight`, in order, with their rows:
    `{"q_proj": 576, "k_proj": 192, "v_proj": 192}`. A number alone is one matrix, called as the layer is.

    `forward(x, batch)` comes into being when `finalize` binds the loaded weight. batch says whose tokens the
    rows of x are: all of its tokens in order, in a head the ones whose logits are wanted (None: not known).
    An adapter wraps a finalized layer that has no activation inside, and models know nothing of it:
    `plain = layer.forward; layer.forward = lambda x, batch: plain(x, batch).add_(delta(x, batch))`.
    """

    forward: Apply
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        parts: int | Mapping[str, int],
        precision: Precision,
        bias: bool = False,
        activation: str | None = None,
    ):
        super().__init__()
        self.parts: Mapping[str, int] = {} if isinstance(parts, int) else dict(parts)
        self.method = precision.linear
        self.activation = activation
        rows = parts if isinstance(parts, int) else sum(parts.values())
        self.weight = empty_parameter((rows, in_features), self.method.weight_dtype)
        self.bias = empty_parameter((rows,), precision.compute) if bias else None

    @property
    def weight_is_copied(self) -> bool:
        """The weight is only staged: `finalize` packs it elsewhere and lets it go."""
        return self.method.copies

    def finalize(self) -> int:
        """Bind the loaded weight. Returns the bytes that the method holds outside the layer's parameters."""
        assert self.weight is not None, "finalize is called once, after loading"
        bias = None if self.bias is None else self.bias.data
        self.forward, held = self.method.bind(self.weight.data, bias, self.activation)
        if self.weight_is_copied:
            self.weight = None
        return held


def empty_parameter(shape: tuple[int, ...], dtype: torch.dtype) -> nn.Parameter:
    """A parameter for the loader to fill (inference only: no gradients)."""
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)
