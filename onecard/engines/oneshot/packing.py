"""Token lists to the packed batch of one step."""

from collections.abc import Sequence

import numpy as np

from onecard.engines.layers.forward_batch import EncodeBatch
from onecard.engines.layers.linear_methods import padded_rows
from onecard.engines.runtime.staging import Staging


def pack(
    texts: Sequence[Sequence[int]], staging: Staging, type_ids: Sequence[Sequence[int] | None] = ()
) -> EncodeBatch:
    """Texts one after another, no padding. None of them may be empty; they go to the device in one copy.

    `type_ids` of the first texts' tokens, None for a text whose tokens are all of type 0, as those of all
    other texts are.
    """
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    cu_seqlens = np.zeros(len(texts) + 1, dtype=np.int32)
    np.cumsum(lengths, out=cu_seqlens[1:])
    tokens = np.empty((2, int(cu_seqlens[-1])), dtype=np.int64)
    np.concatenate([np.asarray(text, dtype=np.int64) for text in texts], out=tokens[0])
    tokens[1] = np.arange(tokens.shape[1]) - np.repeat(cu_seqlens[:-1], lengths)
    arrays = [*tokens, cu_seqlens]
    if any(type_ids):
        arrays.append(np.zeros(tokens.shape[1], dtype=np.int64))
        for start, types in zip(cu_seqlens.tolist(), type_ids, strict=False):
            if types is not None:
                arrays[-1][start : start + len(types)] = types
    input_ids, positions, starts, *types_of = staging.to_device(arrays)
    return EncodeBatch(input_ids, positions, starts, int(lengths.max()), *types_of)


FILLER_TOKENS = 64


def filler_texts(num_tokens: int, longest: int = FILLER_TOKENS) -> list[list[int]]:
    """Texts of token 0, `longest` at most, that fill a CPU's step up to a row count that its linear layers
    know.

    See `padded_rows`: filled once here, no layer has to copy its input. Nobody reads what becomes of them.
    """
    missing, length = padded_rows(num_tokens) - num_tokens, min(FILLER_TOKENS, longest)
    return [[0] * min(length, missing - start) for start in range(0, missing, length)]
