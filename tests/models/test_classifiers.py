"""Random cross-encoders of each architecture against transformers', and what isn't served as what."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from onecard.engines.layers.forward_batch import EncodeBatch
from onecard.engines.models.config import ConfigError, EncoderConfig
from onecard.engines.models.registry import ARCHITECTURES, build_model, load_config, parse_config
from onecard.engines.weights.checkpoint import LoadError
from onecard.engines.weights.loader import LoadedModel, load_model

SIZES: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 42,
    "attn_implementation": "eager",
}
LENGTHS = [7, 1, 40, 13]
FIRST_TOKEN = 5
"""Ids from here on: transformers gives padding (1) positions of its own."""
CLASSIFIERS = list(ARCHITECTURES["reranker"])


def save_random(name: str, folder: Path, **options: Any) -> Any:
    torch.manual_seed(0)
    model_class: Any = getattr(transformers, name)
    sizes = {**SIZES, "type_vocab_size": 2 if name.startswith("Bert") else 1, **options}
    model = model_class(model_class.config_class(**sizes)).eval()
    with torch.no_grad():
        for weight, parameter in model.named_parameters():
            parameter.normal_(1.0 if "LayerNorm.weight" in weight else 0.0, 0.2)
    model.save_pretrained(folder)
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()


def load(folder: Path, device: str = "cpu", dtype: str = "float32") -> LoadedModel:
    return load_model(folder, load_config(folder, "reranker"), torch.device(device), dtype)


def texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(FIRST_TOKEN, 120, (n,), generator=generator).tolist() for n in LENGTHS]


@torch.inference_mode()
def logits(loaded: LoadedModel, batch: EncodeBatch) -> torch.Tensor:
    hidden = loaded.model.forward(batch)
    return loaded.model.classify(hidden[batch.cu_seqlens[:-1].long()], batch).cpu()


@torch.inference_mode()
def expected_logits(reference: Any, types: list[list[int]] | None = None) -> torch.Tensor:
    rows = []
    for i, text in enumerate(texts()):
        token_types = None if types is None else torch.tensor([types[i]])
        rows.append(reference(torch.tensor([text]), token_type_ids=token_types).logits)
    return torch.cat(rows)


@pytest.mark.parametrize("num_labels", [1, 2, 5])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_logits_equal_transformers(
    name: str, num_labels: int, device: str, tmp_path: Path, encode_batch: Any
) -> None:
    reference = save_random(name, tmp_path, num_labels=num_labels)
    loaded = load(tmp_path, device)
    got = logits(loaded, encode_batch(texts(), device))
    assert got.shape == (len(LENGTHS), num_labels)
    assert got.dtype == torch.float32
    assert loaded.ignored == ()
    tolerance = 1e-5 if device == "cpu" else 1e-3
    torch.testing.assert_close(got, expected_logits(reference), atol=tolerance, rtol=tolerance)


def test_token_types_reach_berts_head(tmp_path: Path, encode_batch: Any) -> None:
    reference = save_random("BertForSequenceClassification", tmp_path)
    batch = encode_batch(texts())
    types = [[0] * (n // 2) + [1] * (n - n // 2) for n in LENGTHS]
    flat = torch.tensor([t for row in types for t in row])
    typed = EncodeBatch(batch.input_ids, batch.positions, batch.cu_seqlens, batch.max_seqlen, flat)
    loaded = load(tmp_path)
    got, expected = logits(loaded, typed), expected_logits(reference, types)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(got, logits(loaded, batch), atol=1e-2)


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "RobertaForSequenceClassification"])
def test_16_bit_checkpoints_give_float32_logits(name: str, tmp_path: Path, encode_batch: Any) -> None:
    reference = save_random(name, tmp_path)
    reference.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = load(tmp_path, dtype="auto")
    assert loaded.dtype_used == "float16"
    got = logits(loaded, encode_batch(texts()))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected_logits(reference.float()), atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_head_must_be_whole(name: str, tmp_path: Path) -> None:
    save_random(name, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    for lost in [name for name in tensors if "classifier" in name or "pooler" in name]:
        save_file({n: t for n, t in tensors.items() if n != lost}, file, metadata={"format": "pt"})
        with pytest.raises(LoadError, match="1 tensors that the model needs are missing"):
            load(tmp_path)


def test_labels_are_the_configs() -> None:
    raw = {**SIZES, "architectures": ["BertForSequenceClassification"]}

    def labels(**options: Any) -> tuple[str, ...]:
        config = parse_config({**raw, **options}, "reranker")
        assert isinstance(config, EncoderConfig)
        assert config.num_labels == len(config.id2label)
        return config.id2label

    assert labels() == ("LABEL_0", "LABEL_1")
    assert labels(num_labels=1) == ("LABEL_0",)
    assert labels(id2label={"1": "no", "0": "yes"}, num_labels=7) == ("yes", "no")
    for wrong in ({}, {"1": "yes"}, {"0": "a", "2": "b"}, {"a": "b"}):
        with pytest.raises(ConfigError, match="id2label must name the head's outputs"):
            labels(id2label=wrong)
    assert parse_config({**raw, "architectures": ["BertModel"]}, "embedding").num_labels == 0


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        *(
            (name, "embedding", f"`kind: embedding` doesn't go with a {name}; write `kind: reranker`")
            for name in CLASSIFIERS
        ),
        ("BertForSequenceClassification", "llm", "write `kind: reranker`"),
        (
            "LlamaForCausalLM",
            "embedding",
            "`kind: embedding` doesn't go with a LlamaForCausalLM; write `kind: llm`",
        ),
        ("Qwen3ForCausalLM", "reranker", "write `kind: llm`"),
        ("BertModel", "llm", "`kind: llm` doesn't go with a BertModel; write `kind: embedding`"),
        ("XLMRobertaForMaskedLM", "reranker", "write `kind: embedding`"),
        ("DistilBertForSequenceClassification", "reranker", "served are BertForSequenceClassification, XLM"),
        ("WhisperForConditionalGeneration", "whisper", "served are none"),
    ],
)
def test_a_checkpoint_is_served_as_its_kind_only(name: str, kind: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({**SIZES, "architectures": [name]}, kind)


def test_a_config_names_the_class_that_is_built() -> None:
    for kind, architectures in ARCHITECTURES.items():
        for name in architectures:
            config = parse_config({**SIZES, "num_key_value_heads": 2, "architectures": [name]}, kind)
            assert type(build_model(config)).__name__ == config.architecture
