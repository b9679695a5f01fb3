"""Llama 2 and 3, and what shares their shape (SmolLM2, TinyLlama, ...)."""

from collections.abc import Mapping
from typing import Any

from onecard.engines.models.config import DecoderConfig, decoder_config
from onecard.engines.models.decoder import DecoderForCausalLM


class LlamaForCausalLM(DecoderForCausalLM):
    """The shared decoder as it is; biases where the config asks for them."""


def parse(raw: Mapping[str, Any]) -> DecoderConfig:
    bias = bool(raw.get("attention_bias", False))
    return decoder_config(
        "LlamaForCausalLM",
        raw,
        default_max_positions=2048,
        attention_bias=bias,
        attention_output_bias=bool(raw.get("attention_output_bias", bias)),
        mlp_bias=bool(raw.get("mlp_bias", False)),
    )
