"""Qwen2 and Qwen2.5: biases on q, k and v, none on the output; a window on some layers where the config says
so.
"""

from collections.abc import Mapping
from typing import Any

from onecard.engines.models.config import DecoderConfig, decoder_config, layer_windows
from onecard.engines.models.decoder import DecoderForCausalLM


class Qwen2ForCausalLM(DecoderForCausalLM):
    """The shared decoder with q, k and v biases."""


def parse(raw: Mapping[str, Any]) -> DecoderConfig:
    return decoder_config(
        "Qwen2ForCausalLM",
        raw,
        default_kv_heads=32,
        attention_bias=True,
        sliding_windows=layer_windows(raw),
    )
