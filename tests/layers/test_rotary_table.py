"""The rotary table against the formulas written out, and the properties of each variant."""

import math
from importlib import import_module

import pytest
import torch

from onecard.engines.layers.rotary import (
    RopeParameters,
    cos_sin_table,
    inverse_frequencies,
    rotary_rows,
)
from onecard.engines.models.config import SIZES, ConfigError, DecoderConfig
from onecard.engines.models.registry import parse_config
from onecard.kernels.rotary import rotary


def test_rows_are_cosines_then_sines_of_the_position() -> None:
    table = cos_sin_table(RopeParameters(rotary_dim=6, rope_theta=100.0), length=5)
    assert table.shape == (5, 6)
    for position in range(5):
        angles = [position * 100.0 ** (-2 * i / 6) for i in range(3)]
        expected = torch.tensor([*map(math.cos, angles), *map(math.sin, angles)])
        torch.testing.assert_close(table[position], expected)


def test_llama3_keeps_fast_waves_and_slows_long_ones() -> None:
    rope = RopeParameters(64, 500000.0, "llama3", factor=8.0, original_max_position_embeddings=8192)
    plain, _ = inverse_frequencies(RopeParameters(64, 500000.0), 131072)
    scaled, attention_factor = inverse_frequencies(rope, 131072)
    wavelengths = 2 * math.pi / plain
    fast, slow = wavelengths < 8192 / 4, wavelengths > 8192
    assert attention_factor == 1.0
    assert fast.any()
    assert slow.any()
    torch.testing.assert_close(scaled[fast], plain[fast])
    torch.testing.assert_close(scaled[slow], plain[slow] / 8)
    between = ~fast & ~slow
    assert ((scaled < plain) & (scaled > plain / 8))[between].all()


def test_frequency_factors_divide() -> None:
    plain, _ = inverse_frequencies(RopeParameters(8), 16)
    divided, _ = inverse_frequencies(RopeParameters(8, freq_factors=(1.0, 2.0, 4.0, 8.0)), 16)
    torch.testing.assert_close(divided, plain / torch.tensor([1.0, 2.0, 4.0, 8.0]))


def test_dynamic_stretches_only_beyond_the_pretraining_length() -> None:
    rope = RopeParameters(8, 10000.0, "dynamic", factor=2.0, original_max_position_embeddings=32)
    plain, _ = inverse_frequencies(RopeParameters(8, 10000.0), 32)
    torch.testing.assert_close(inverse_frequencies(rope, 32)[0], plain)
    longer, _ = inverse_frequencies(rope, 64)
    base = 10000.0 * 3.0 ** (8 / 6)
    torch.testing.assert_close(longer, torch.tensor([base ** (-2 * i / 8) for i in range(4)]))


def test_a_tokens_row_is_the_tables_at_its_position() -> None:
    table = cos_sin_table(RopeParameters(rotary_dim=8), length=12)
    positions = torch.tensor([3, 0, 11, 11])
    assert torch.equal(rotary_rows(table, positions.unsqueeze(0), (1, 2, 1)), table[positions])
    assert torch.equal(rotary_rows(table, positions.expand(3, -1), (1, 2, 1)), table[positions])


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_sections_turn_as_transformers_do(name: str) -> None:
    """Images: every token has a time, a height and a width, and a third of the frequencies reads each."""
    theirs = import_module(f"transformers.models.{name}.modeling_{name}")
    prefix = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL"}[name]
    parameters = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 10}
    config = getattr(theirs, f"{prefix}TextConfig")(**sizes, rope_parameters=parameters)
    embedding = getattr(theirs, f"{prefix}RotaryEmbedding")(config)
    torch.manual_seed(0)
    q, k = torch.randn(7, 4, 16), torch.randn(7, 2, 16)
    positions = torch.randint(0, 50, (3, 7))
    cos, sin = embedding(q, positions.unsqueeze(1))
    expected = theirs.apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos, sin)
    raw = {**config.to_dict(), "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu"}
    ours = parse_config(raw, "llm")
    assert isinstance(ours, DecoderConfig)
    rows = rotary_rows(cos_sin_table(ours.rope, 50), positions, ours.rope.sections)
    rotary(q, k, rows)
    torch.testing.assert_close(q, expected[0][0].transpose(0, 1))
    torch.testing.assert_close(k, expected[1][0].transpose(0, 1))


def test_sections_must_divide_the_frequencies_in_order() -> None:
    raw = dict.fromkeys(SIZES, 8) | {"architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 8}
    for more in ({"mrope_section": [1, 1, 1]}, {"mrope_section": [2, 1, 1], "mrope_interleaved": True}):
        with pytest.raises(ConfigError, match="divides the 4 frequencies in order"):
            parse_config({**raw, "head_dim": 8, "rope_scaling": {"type": "mrope", **more}}, "llm")
