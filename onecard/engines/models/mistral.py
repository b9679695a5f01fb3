"""Mistral 7B and its kin: Llama's block with a sliding window over every layer."""

from collections.abc import Mapping
from typing import Any

from onecard.engines.models.config import DecoderConfig, decoder_config, require
from onecard.engines.models.decoder import DecoderForCausalLM


class MistralForCausalLM(DecoderForCausalLM):
    """The shared decoder with one window for all layers (newer checkpoints set it to null: none)."""


def parse(raw: Mapping[str, Any]) -> DecoderConfig:
    window = raw.get("sliding_window", 4096) or 0
    return decoder_config(
        "MistralForCausalLM",
        raw,
        default_kv_heads=8,
        default_max_positions=131072,
        sliding_windows=(window,) * require(raw, "num_hidden_layers")[0],
    )
