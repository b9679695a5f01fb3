"""The packed inputs of one step, passed to `forward` and on to every layer. No globals, no context."""

from dataclasses import dataclass

import torch

from onecard.kernels.paged_attention import PagedBatch


@dataclass(frozen=True)
class ForwardBatch:
    """One step of a paged autoregressive model; T tokens of B sequences, packed, decodes first.

    input_ids  `[T]` int64
    positions  `[R, T]` int64      of each token in its own sequence, by which it is turned: R = 1, or 3 where
                                   images have a time, a height and a width
    paged      whose token is whose and where its K/V lie (block tables, slots, lengths)
    cross      a second block table of each sequence: the same queries over other K/V in the same cache
               (Whisper: the sound's)
    kv_cache   `[n, layers, 2, block_size, kv_heads, head_dim]`: the model's own view of the whole arena
    logits_rows `[N]` int64        the packed rows whose logits are wanted
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    paged: PagedBatch
    kv_cache: torch.Tensor
    logits_rows: torch.Tensor
    cross: PagedBatch | None = None


@dataclass(frozen=True)
class EncodeBatch:
    """One step of a one-shot packed model (BERT, later ViT): T tokens of B texts, packed, no padding.

    input_ids `[T]` int64, positions `[T]` int64 (from 0 in each text), cu_seqlens `[B + 1]` int32, max_seqlen
    the longest text, token_type_ids `[T]` int64 or None (all 0).
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    token_type_ids: torch.Tensor | None = None


Batch = ForwardBatch | EncodeBatch
