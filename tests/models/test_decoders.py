"""Two-layer random models of each architecture: our logits against transformers', token by token."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from onecard.engines.layers import linear_methods

VOCAB = 160
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def llama(**options: Any) -> tuple[PreTrainedConfig, type[PreTrainedModel]]:
    return LlamaConfig(**{**SIZES, **options}), LlamaForCausalLM


def rope(kind: str, **options: Any) -> tuple[PreTrainedConfig, type[PreTrainedModel]]:
    return llama(rope_parameters={"rope_type": kind, "rope_theta": 500.0, **options})


CASES = {
    "llama": llama(tie_word_embeddings=False),
    "llama-tied": llama(tie_word_embeddings=True),
    "llama-biases": llama(attention_bias=True, mlp_bias=True),
    "llama-wide-heads": llama(head_dim=16),
    "llama-mha": llama(num_key_value_heads=6),
    "llama-rope-linear": rope("linear", factor=4.0),
    "llama-rope-dynamic": rope("dynamic", factor=4.0),
    "llama-rope-yarn": rope("yarn", factor=4.0, original_max_position_embeddings=16),
    "llama-rope-yarn-mscale": rope(
        "yarn",
        factor=8.0,
        original_max_position_embeddings=16,
        mscale=1.2,
        mscale_all_dim=0.6,
        beta_fast=8.0,
        beta_slow=2.0,
        truncate=False,
    ),
    "llama-rope-yarn-attention-factor": rope(
        "yarn", factor=4.0, original_max_position_embeddings=16, attention_factor=0.8
    ),
    "llama-rope-llama3": rope(
        "llama3", factor=8.0, original_max_position_embeddings=32, low_freq_factor=1.0, high_freq_factor=4.0
    ),
    "mistral-window": (MistralConfig(**SIZES, sliding_window=9), MistralForCausalLM),
    "mistral-no-window": (MistralConfig(**SIZES, sliding_window=None, head_dim=12), MistralForCausalLM),
    "qwen2": (Qwen2Config(**SIZES, tie_word_embeddings=True), Qwen2ForCausalLM),
    "qwen2-window": (
        Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=7, max_window_layers=1),
        Qwen2ForCausalLM,
    ),
    "qwen3": (Qwen3Config(**SIZES, head_dim=16), Qwen3ForCausalLM),
    "qwen3-window": (
        Qwen3Config(
            **SIZES,
            head_dim=16,
            attention_bias=True,
            use_sliding_window=True,
            sliding_window=7,
            layer_types=["sliding_attention", "full_attention"],
        ),
        Qwen3ForCausalLM,
    ),
}


def save_random(
    config: PreTrainedConfig, model_class: type[PreTrainedModel], folder: Path
) -> PreTrainedModel:
    """A model whose every parameter is random, biases and norms too, so that none can be mixed up."""
    torch.manual_seed(0)
    config._attn_implementation = "eager"
    model = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name else 0.0
            parameter.normal_(centre, 0.3 if centre else 0.15)
    model.save_pretrained(folder)
    return model


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def expected_logits(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0]


STEPS = [
    {"a": 19, "b": 5},  # the first chunk of a, all of b's prompt
    {"a": 21, "b": 1, "c": 23},  # a's next chunk beside a decode and a whole prompt
    {"a": 1, "b": 1, "c": 1},
    {"a": 5, "c": 1, "b": 1},
    {"b": 1, "a": 1, "c": 1},
]
"""Every kind of step: chunked prefill, mixed, decodes only."""


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case: str, device: str, tmp_path: Path, paged_runner: Any) -> None:
    model = save_random(*CASES[case], tmp_path)
    runner = paged_runner(tmp_path, "float32", device)
    tokens = {name: prompt(sum(step.get(name, 0) for step in STEPS), seed) for seed, name in enumerate("abc")}
    for name, sequence in tokens.items():
        runner.add(name, sequence)
    results = [runner.step(step) for step in STEPS]
    for name, sequence in tokens.items():
        got = torch.cat([result[name] for result in results if name in result]).cpu()
        expected = expected_logits(model, sequence)
        assert expected.std() > 0.5
        tolerance = 1e-4 if device == "cpu" else 1e-3
        torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("length", [12, 40])
def test_longrope_takes_the_factors_for_the_served_length(
    length: int, tmp_path: Path, paged_runner: Any
) -> None:
    """Up to the pretraining length the short factors, beyond it the long ones."""
    factors = {"short_factor": [1.0, 1.1, 1.3, 1.5], "long_factor": [1.0, 2.0, 4.0, 8.0]}
    config, model_class = rope("longrope", factor=4.0, original_max_position_embeddings=16, **factors)
    config.max_position_embeddings = length
    model = save_random(config, model_class, tmp_path)
    runner = paged_runner(tmp_path)
    tokens = prompt(length, 3)
    runner.add("a", tokens)
    got = runner.step({"a": length})["a"]
    torch.testing.assert_close(got, expected_logits(model, tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "case", ["llama", "llama-rope-llama3", "qwen3-window", "qwen2-window", "mistral-window"]
)
def test_transformers_4_spelling_is_the_same_config(case: str, tmp_path: Path) -> None:
    from onecard.engines.models.registry import parse_config

    CASES[case][0].save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["architectures"] = [CASES[case][1].__name__]
    old = dict(raw)
    parameters = dict(old.pop("rope_parameters"))
    old["rope_theta"] = parameters.pop("rope_theta")
    kind = parameters.pop("rope_type")
    old["rope_scaling"] = None if kind == "default" else {"type": kind, **parameters}
    old["torch_dtype"] = old.pop("dtype", None)
    if case == "qwen2-window":
        del old["layer_types"]
    assert parse_config(old, "llm") == parse_config(raw, "llm")


@pytest.mark.parametrize("case", ["llama", "llama-tied", "qwen2"])
def test_plain_linears_give_the_same_logits(
    case: str, tmp_path: Path, paged_runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is packed, as on a card, a tied head reads the embedding table itself."""
    monkeypatch.setattr(linear_methods, "works", lambda _: False)
    model = save_random(*CASES[case], tmp_path)
    runner = paged_runner(tmp_path)
    table = runner.model.embed_tokens.weight
    assert (runner.model.lm_head.weight is table) == model.config.tie_word_embeddings
    tokens = prompt(30, 1)
    runner.add("a", tokens)
    got = torch.cat([runner.step({"a": count})["a"] for count in (20, 9, 1)])
    torch.testing.assert_close(got, expected_logits(model, tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", ["qwen3", "llama-tied"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 0.02), ("bfloat16", 0.15)])
def test_narrow_weights_stay_close(
    case: str, dtype: str, tolerance: float, device: str, tmp_path: Path, paged_runner: Any
) -> None:
    """On a card the activations are narrow, too: as close as transformers is there in that precision."""
    model = save_random(*CASES[case], tmp_path)
    tokens = prompt(30, 1)
    runner = paged_runner(tmp_path, dtype, device)
    runner.add("a", tokens)
    expected = expected_logits(model, tokens)
    error = (runner.step({"a": 30})["a"].cpu() - expected).abs().max()
    if device == "cuda":
        model.to(device, getattr(torch, dtype))
        with torch.inference_mode():
            theirs = model(torch.tensor([tokens], device=device)).logits[0].float().cpu()
        tolerance = 2 * float((theirs - expected).abs().max())
    assert 1e-6 < error < tolerance
