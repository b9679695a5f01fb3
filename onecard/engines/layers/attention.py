"""Attention layers: over a paged cache for decoders, inside each text for encoders. They hold no weights."""

import torch

from onecard.engines.layers.forward_batch import EncodeBatch, ForwardBatch
from onecard.kernels.kv_store import kv_store
from onecard.kernels.paged_attention import paged_attention
from onecard.kernels.rotary_kv_store import rotary_kv_store
from onecard.kernels.varlen_attention import varlen_attention


class PagedAttention:
    """Causal attention of one layer: stores the step's K and V in the cache, then reads the cache.

    A window w > 0 lets a token see itself and the w - 1 before it.
    """

    def __init__(self, layer: int, scale: float, sliding_window: int = 0):
        self.layer = layer
        self.scale = scale
        self.sliding_window = sliding_window
        self._kv_cache: torch.Tensor | None = None
        self._views: tuple[torch.Tensor, torch.Tensor]

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        batch: ForwardBatch,
        cos_sin: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """q `[T, Hq, D]`, k, v `[T, Hk, D]` (rows may be strided) to `[T, Hq, D]`.

        q and k are turned by cos_sin `[T, R]` (see `layers.rotary.rotary_rows`), in place; without it they
        are taken as they are.
        """
        k_cache, v_cache = self._layer_views(batch.kv_cache)
        if cos_sin is None:
            kv_store(k, v, k_cache, v_cache, batch.paged.slot_mapping)
        else:
            rotary_kv_store(q, k, v, cos_sin, k_cache, v_cache, batch.paged)
        return paged_attention(q, k_cache, v_cache, batch.paged, self.scale, self.sliding_window)

    def _layer_views(self, kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """This layer's K and V; kept, because an engine's cache is one tensor for its lifetime."""
        if kv_cache is not self._kv_cache:
            self._kv_cache = kv_cache
            self._views = (kv_cache[:, self.layer, 0], kv_cache[:, self.layer, 1])
        return self._views


class EncoderAttention:
    """Every token of a text sees every token of that text."""

    def __init__(self, scale: float):
        self.scale = scale

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: EncodeBatch) -> torch.Tensor:
        """q, k, v `[T, H, D]` (rows may be strided); returns `[T, H, D]`."""
        return varlen_attention(q, k, v, batch.cu_seqlens, batch.max_seqlen, self.scale)
