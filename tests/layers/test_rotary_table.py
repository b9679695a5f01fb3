"""The rotary table against the formulas written out, and the properties of each variant."""

import math

import torch

from onecard.engines.layers.rotary import RopeParameters, cos_sin_table, inverse_frequencies


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
