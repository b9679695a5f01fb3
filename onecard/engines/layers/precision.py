"""What weights are stored in and what arithmetic is done in."""

from dataclasses import dataclass

import torch

from onecard.engines.layers.linear_methods import LinearMethod, linear_method


@dataclass(frozen=True)
class Precision:
    """`storage`: matrices and embedding tables. `compute`: activations, norms, biases, and K and V."""

    storage: torch.dtype
    compute: torch.dtype
    linear: LinearMethod


def precision_for(device_type: str, storage: torch.dtype) -> Precision:
    """A CPU computes in float32 whatever it stores; a GPU computes in what it stores."""
    compute = torch.float32 if device_type == "cpu" else storage
    return Precision(storage, compute, linear_method(device_type, storage))
