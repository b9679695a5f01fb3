"""Qwen3 (dense): each head's q and k are normed before they are rotated; heads of 128 whatever the hidden
size.
"""

from collections.abc import Mapping
from typing import Any

from onecard.engines.layers.precision import Precision
from onecard.engines.models.config import DecoderConfig, decoder_config, layer_windows
from onecard.engines.models.decoder import DecoderForCausalLM


class Qwen3ForCausalLM(DecoderForCausalLM):
    """The shared decoder with q/k norm."""

    def __init__(self, config: DecoderConfig, precision: Precision):
        super().__init__(config, precision, qk_norm=True)


def parse(raw: Mapping[str, Any]) -> DecoderConfig:
    bias = bool(raw.get("attention_bias", False))
    return decoder_config(
        "Qwen3ForCausalLM",
        raw,
        default_kv_heads=32,
        default_head_dim=128,
        attention_bias=bias,
        attention_output_bias=bias,
        sliding_windows=layer_windows(raw),
    )
