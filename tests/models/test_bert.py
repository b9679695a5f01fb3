"""A random BERT against transformers', ragged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForPreTraining, BertModel

from onecard.engines.layers.forward_batch import EncodeBatch
from onecard.engines.models.registry import load_config
from onecard.engines.weights.loader import load_model

SIZES: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "attn_implementation": "eager",
}
LENGTHS = [7, 1, 40, 13]


def save_random(model_class: type, folder: Path, **options: Any) -> Any:
    torch.manual_seed(0)
    model = model_class(BertConfig(**SIZES, **options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "LayerNorm.weight" in name else 0.0
            parameter.normal_(centre, 0.2)
    model.save_pretrained(folder)
    return model


def texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, 120, (length,), generator=generator).tolist() for length in LENGTHS]


@torch.inference_mode()
def assert_equal(
    reference: Any, folder: Path, batch: EncodeBatch, types: list[list[int]] | None = None
) -> None:
    loaded = load_model(folder, load_config(folder, "embedding"), torch.device("cpu"))
    got = loaded.model.forward(batch).split(LENGTHS)
    for i, (text, rows) in enumerate(zip(texts(), got)):
        token_types = None if types is None else torch.tensor([types[i]])
        expected = reference(torch.tensor([text]), token_type_ids=token_types).last_hidden_state[0]
        torch.testing.assert_close(rows, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu"])
def test_hidden_states_equal_transformers(act: str, tmp_path: Path, encode_batch: Any) -> None:
    model = save_random(BertModel, tmp_path, hidden_act=act)
    assert_equal(model, tmp_path, encode_batch(texts()))


def test_token_types(tmp_path: Path, encode_batch: Any) -> None:
    model = save_random(BertModel, tmp_path)
    batch = encode_batch(texts())
    types = [[0] * (n // 2) + [1] * (n - n // 2) for n in LENGTHS]
    flat = torch.tensor([t for row in types for t in row])
    batch = EncodeBatch(batch.input_ids, batch.positions, batch.cu_seqlens, batch.max_seqlen, flat)
    assert_equal(model, tmp_path, batch, types)


def test_a_pretraining_checkpoint_serves_as_the_encoder_below_its_heads(
    tmp_path: Path, encode_batch: Any
) -> None:
    model = save_random(BertForPreTraining, tmp_path)
    assert_equal(model.bert, tmp_path, encode_batch(texts()))
    loaded = load_model(tmp_path, load_config(tmp_path, "embedding"), torch.device("cpu"))
    assert {"bert.pooler.dense.bias", "bert.pooler.dense.weight"} < set(loaded.ignored)
    assert all(name.startswith(("bert.pooler.", "cls.")) for name in loaded.ignored)


def test_norms_under_their_first_names(tmp_path: Path, encode_batch: Any) -> None:
    model = save_random(BertModel, tmp_path)
    file = tmp_path / "model.safetensors"
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in load_file(file).items()
    }
    assert "embeddings.LayerNorm.gamma" in old
    save_file(old, file, metadata={"format": "pt"})
    assert_equal(model, tmp_path, encode_batch(texts()))


def test_bfloat16_checkpoint_is_served_in_float16(tmp_path: Path, encode_batch: Any) -> None:
    model = save_random(BertModel, tmp_path)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = load_model(tmp_path, load_config(tmp_path, "embedding"), torch.device("cpu"))
    assert loaded.dtype_used == "float16"
    with torch.inference_mode():
        got = loaded.model.forward(encode_batch(texts())).split(LENGTHS)
        model.float()
        for text, rows in zip(texts(), got):
            expected = model(torch.tensor([text])).last_hidden_state[0]
            assert rows.dtype == torch.float32
            torch.testing.assert_close(rows, expected, atol=2e-2, rtol=2e-2)
