"""What the loader asks of every model: which names its checkpoint uses, and what no checkpoint holds."""

from collections.abc import Mapping

import torch
from torch import nn


class ServedModule(nn.Module):
    """A model over packed tokens. A class says what differs from these defaults.

    checkpoint_prefix  dropped from the checkpoint's names before anything else
    renamed_weights    (theirs, ours): parts of names, replaced in order
    ignored_weights    patterns of names (ours) that a checkpoint may hold and the model doesn't use
    shared_weights     weights (ours) that are read from another one's tensor
    """

    checkpoint_prefix = ""
    renamed_weights: tuple[tuple[str, str], ...] = ()
    ignored_weights: tuple[str, ...] = ()
    shared_weights: Mapping[str, str] = {}

    def tables(self) -> dict[str, torch.Tensor]:
        """Values of the model's buffers, which no checkpoint holds."""
        return {}

    def finalize(self) -> None:
        """Every weight and table is loaded and every linear layer bound."""
