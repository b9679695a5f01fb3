"""Random XLM-RoBERTas, RoBERTas and CamemBERTs against transformers', alone and packed with others."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from onecard.engines.models.config import ConfigError, EncoderConfig
from onecard.engines.models.registry import load_config, parse_config
from onecard.engines.weights.loader import LoadedModel, load_model

SIZES: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 42,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "attn_implementation": "eager",
}
LENGTHS = [7, 1, 40, 13]
FIRST_TOKEN = 5
"""Ids from here on: transformers gives padding (1) positions of its own."""


def save_random(name: str, folder: Path, spread: float = 0.2, **options: Any) -> Any:
    """A model of transformers' class `name` with random weights and gains, saved."""
    torch.manual_seed(0)
    model_class: Any = getattr(transformers, name)
    model = model_class(model_class.config_class(**{**SIZES, **options})).eval()
    with torch.no_grad():
        for weight, parameter in model.named_parameters():
            parameter.normal_(1.0 if "LayerNorm.weight" in weight else 0.0, spread)
    model.save_pretrained(folder)
    return model


def load(folder: Path, device: str = "cpu") -> LoadedModel:
    return load_model(folder, load_config(folder, "embedding"), torch.device(device), "float32")


def texts(lengths: list[int], vocab_size: int = 120) -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(FIRST_TOKEN, vocab_size, (n,), generator=generator).tolist() for n in lengths]


@torch.inference_mode()
def assert_equal(
    reference: Any,
    loaded: LoadedModel,
    pack: Any,
    lengths: list[int] = LENGTHS,
    atol: float = 1e-5,
    device: str = "cpu",
) -> None:
    """Packed with others, then each alone."""
    inputs = texts(lengths)
    packed = loaded.model.forward(pack(inputs, device)).cpu().split(lengths)
    for text, rows in zip(inputs, packed, strict=True):
        expected = reference(torch.tensor([text])).last_hidden_state[0]
        torch.testing.assert_close(rows, expected, atol=atol, rtol=1e-5)
        alone = loaded.model.forward(pack([text], device)).cpu()
        torch.testing.assert_close(alone, expected, atol=atol, rtol=1e-5)


@pytest.mark.parametrize("name", ["XLMRobertaModel", "RobertaModel", "CamembertModel"])
def test_hidden_states_equal_transformers(name: str, device: str, tmp_path: Path, encode_batch: Any) -> None:
    model = save_random(name, tmp_path)
    atol = 1e-5 if device == "cpu" else 1e-3
    assert_equal(model, load(tmp_path, device), encode_batch, atol=atol, device=device)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("XLMRobertaForMaskedLM", {"lm_head.bias", "lm_head.dense.weight", "lm_head.layer_norm.bias"}),
        ("RobertaForMaskedLM", {"lm_head.bias", "lm_head.dense.weight", "lm_head.layer_norm.bias"}),
        ("CamembertForMaskedLM", {"lm_head.bias", "lm_head.dense.weight", "lm_head.layer_norm.bias"}),
    ],
)
def test_a_model_with_a_head_serves_as_the_encoder_below_it(
    name: str, head: set[str], tmp_path: Path, encode_batch: Any
) -> None:
    model = save_random(name, tmp_path)
    loaded = load(tmp_path)
    assert_equal(model.roberta, loaded, encode_batch)
    assert head <= set(loaded.ignored)
    assert not any("encoder" in name or "embeddings" in name for name in loaded.ignored)


def test_the_pooler_is_ignored(tmp_path: Path) -> None:
    save_random("XLMRobertaModel", tmp_path)
    assert set(load(tmp_path).ignored) == {"pooler.dense.weight", "pooler.dense.bias"}


@pytest.mark.parametrize("pad_token_id", [0, 3])
def test_positions_start_behind_the_padding_s(pad_token_id: int, tmp_path: Path, encode_batch: Any) -> None:
    model = save_random("XLMRobertaModel", tmp_path, pad_token_id=pad_token_id, max_position_embeddings=44)
    config = load_config(tmp_path, "embedding")
    assert isinstance(config, EncoderConfig)
    assert config.max_text_len == 44 - pad_token_id - 1
    assert_equal(model, load(tmp_path), encode_batch)


def test_a_text_fills_all_positions_of_bge_m3(tmp_path: Path, encode_batch: Any) -> None:
    """8194 rows of positions, two of them for padding: 8192 tokens."""
    options = {"max_position_embeddings": 8194, "hidden_size": 16, "num_attention_heads": 1}
    model = save_random("XLMRobertaModel", tmp_path, **options, attn_implementation="sdpa")
    config = load_config(tmp_path, "embedding")
    assert isinstance(config, EncoderConfig)
    assert config.max_text_len == 8192
    assert_equal(model, load(tmp_path), encode_batch, [3, 8192])


@pytest.mark.parametrize("name", ["XLMRobertaModel", "BertModel"])
def test_layers_as_wide_as_bge_m3_s(name: str, tmp_path: Path, encode_batch: Any) -> None:
    options = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
    model = save_random(name, tmp_path, spread=0.03, **options)
    assert_equal(model, load(tmp_path), encode_batch, [33, 2], atol=1e-4)


RAW = {**SIZES, "architectures": ["XLMRobertaModel"]}


def test_a_config_that_says_little_gets_transformers_defaults() -> None:
    raw = {key: RAW[key] for key in RAW if key not in ("layer_norm_eps", "type_vocab_size")}
    config = parse_config({**raw, "pad_token_id": None}, "embedding")
    theirs = transformers.XLMRobertaConfig()
    assert isinstance(config, EncoderConfig)
    assert config.first_position == theirs.pad_token_id + 1
    assert config.layer_norm_eps == theirs.layer_norm_eps
    assert config.type_vocab_size == theirs.type_vocab_size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_position_embeddings": 2}, "first position of XLMRobertaModel is 2: no text has room"),
        ({"position_embedding_type": "relative_key"}, "XLMRobertaModel is served with 'absolute' only"),
        ({"is_decoder": True}, "XLMRobertaModel checkpoint is a decoder"),
        ({"hidden_act": "swish"}, "XLMRobertaModel is served with"),
        ({"vocab_size": None}, "lacks vocab_size"),
        ({"architectures": ["XLMRobertaXLModel"]}, r"XLMRobertaXLModel; served are .*XLMRobertaModel"),
    ],
)
def test_refuses_what_it_can_not_compute(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({**RAW, **change}, "embedding")
