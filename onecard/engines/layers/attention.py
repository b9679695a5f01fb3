"""Attention layers: over a paged cache for decoders, inside each text for encoders. They hold no weights."""

from typing import Literal

import torch

from onecard.engines.layers.forward_batch import EncodeBatch, ForwardBatch
from onecard.kernels.kv_store import kv_store
from onecard.kernels.paged_attention import PagedBatch, paged_attention
from onecard.kernels.rotary_kv_store import rotary_kv_store
from onecard.kernels.varlen_attention import varlen_attention


class PagedAttention:
    """Attention of one layer over the cache, where it stores the step's K and V first.

    `table` says by which block table of the batch. A window w > 0 lets a token see itself and the w - 1
    before it. Not causal, it sees all that the table has of its sequence, and there is no window.
    """

    def __init__(
        self,
        layer: int,
        scale: float,
        sliding_window: int = 0,
        table: Literal["paged", "cross"] = "paged",
        causal: bool = True,
    ):
        self.layer = layer
        self.scale = scale
        self.sliding_window = sliding_window
        self.table = table
        self.causal = causal
        self._kv_cache: torch.Tensor | None = None
        self._views: tuple[torch.Tensor, torch.Tensor]

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        batch: ForwardBatch,
        cos_sin: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """q `[T, Hq, D]`, k, v `[T, Hk, D]` (rows may be strided) to `[T, Hq, D]`.

        Without k and v nothing is stored: the cache has them. q and k are turned by cos_sin `[T, R]` (see
        `layers.rotary.rotary_rows`), in place; without it they are taken as they are.
        """
        k_cache, v_cache = self._layer_views(batch.kv_cache)
        paged: PagedBatch = getattr(batch, self.table)
        if k is not None and v is not None:
            if cos_sin is None:
                kv_store(k, v, k_cache, v_cache, paged.slot_mapping)
            else:
                rotary_kv_store(q, k, v, cos_sin, k_cache, v_cache, paged)
        return paged_attention(q, k_cache, v_cache, paged, self.scale, self.sliding_window, self.causal)

    def _layer_views(self, kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """This layer's K and V; kept, because an engine's cache is one tensor for its lifetime."""
        if kv_cache is not self._kv_cache:
            self._kv_cache = kv_cache
            self._views = (kv_cache[:, self.layer, 0], kv_cache[:, self.layer, 1])
        return self._views


class EncoderAttention:
    """Every token of a text sees every token of that text; causal: those before it, and itself."""

    def __init__(self, scale: float, causal: bool = False):
        self.scale = scale
        self.causal = causal

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: EncodeBatch) -> torch.Tensor:
        """q, k, v `[T, H, D]` (rows may be strided); returns `[T, H, D]`."""
        return varlen_attention(q, k, v, batch.cu_seqlens, batch.max_seqlen, self.scale, self.causal)
