"""Mistral 7B and its kin: Llama's block with a sliding window over every layer."""

from collections.abc import Mapping
from typing import Any

from onecard.engines.models.config import DecoderConfig, decoder_config, window_of
from onecard.engines.models.config_values import require
from onecard.engines.models.decoder import DecoderForCausalLM


class MistralForCausalLM(DecoderForCausalLM):
    """The shared decoder with one window for all layers (newer checkpoints set it to null: none)."""


def parse(raw: Mapping[str, Any]) -> DecoderConfig:
    window = window_of(raw)
    return decoder_config(
        "MistralForCausalLM",
        raw,
        default_kv_heads=8,
        default_max_positions=131072,
        sliding_windows=(window,) * require(raw, "num_hidden_layers")[0],
    )
