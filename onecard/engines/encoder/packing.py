"""Token lists to the packed batch of one step."""

from collections.abc import Sequence

import numpy as np
import torch

from onecard.engines.layers.forward_batch import EncodeBatch
from onecard.engines.layers.linear_methods import padded_rows


def pack(texts: Sequence[Sequence[int]], device: torch.device) -> EncodeBatch:
    """Texts one after another, no padding. None of them may be empty; they go to the device in two copies."""
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    cu_seqlens = np.zeros(len(texts) + 1, dtype=np.int32)
    np.cumsum(lengths, out=cu_seqlens[1:])
    tokens = np.empty((2, int(cu_seqlens[-1])), dtype=np.int64)
    np.concatenate([np.asarray(text, dtype=np.int64) for text in texts], out=tokens[0])
    tokens[1] = np.arange(tokens.shape[1]) - np.repeat(cu_seqlens[:-1], lengths)
    input_ids, positions = _to(torch.from_numpy(tokens), device)
    return EncodeBatch(
        input_ids=input_ids,
        positions=positions,
        cu_seqlens=_to(torch.from_numpy(cu_seqlens), device),
        max_seqlen=int(lengths.max()),
    )


FILLER_TOKENS = 64


def filler_texts(num_tokens: int) -> list[list[int]]:
    """Texts of token 0 that fill a CPU's step up to a row count that its linear layers know.

    See `padded_rows`: filled once here, no layer has to copy its input. Nobody reads what becomes of them.
    """
    missing = padded_rows(num_tokens) - num_tokens
    return [[0] * min(FILLER_TOKENS, missing - start) for start in range(0, missing, FILLER_TOKENS)]


def _to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
