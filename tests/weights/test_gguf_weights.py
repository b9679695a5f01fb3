"""GGUF: headers, every type, names, the order of rotated rows, settings in tensors, damaged files."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from onecard.engines.models.config import ConfigError, DecoderConfig
from onecard.engines.models.registry import load_config
from onecard.engines.weights.checkpoint import LoadError
from onecard.engines.weights.gguf import GgufCheckpoint
from onecard.engines.weights.gguf_file import GgufError, GgufFile
from onecard.engines.weights.loader import load_model, open_checkpoint

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MODELS: dict[str, tuple[str, PreTrainedModel]] = {
    "llama": ("llama", LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True))),
    "llama-biases": ("llama", LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True))),
    "qwen2": ("qwen2", Qwen2ForCausalLM(Qwen2Config(**SIZES))),
    "qwen3": ("qwen3", Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=32))),
}

# Bytes of a block where a half-precision scale lies; random ones would be NaN or infinite now and then.
K_SCALES = {Type.Q4_K: (0, 2), Type.Q5_K: (0, 2), Type.Q6_K: (208,)}


def random_blocks(kind: Type, rows: int, blocks: int) -> np.ndarray:
    _, size = gguf.GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(0)
    data = generator.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    for offset in K_SCALES[kind]:
        scales = generator.uniform(-0.02, 0.02, (rows, blocks, 1)).astype(np.float16)
        data[..., offset : offset + 2] = scales.view(np.uint8)
    return data.reshape(rows, -1)


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1])
def test_types_that_can_be_written(kind: Type, tmp_path: Path, write_gguf: Any) -> None:
    weights = np.random.default_rng(1).normal(size=(37, 64)).astype(np.float32)
    data = gguf.quantize(weights, kind)
    write_gguf(tmp_path / "m.gguf", "qwen2", {"first": weights, "w": (data, kind)})
    checkpoint = GgufCheckpoint(tmp_path / "m.gguf")
    got = checkpoint.read("w")
    assert got.shape == checkpoint.tensors["w"].shape == (37, 64)
    assert checkpoint.tensors["w"].nbytes == data.nbytes
    np.testing.assert_array_equal(got.float().numpy(), gguf.dequantize(data, kind))
    assert np.abs(got.float().numpy() - weights).max() < (0.35 if kind.name.startswith("Q4") else 0.03)


@pytest.mark.parametrize("kind", K_SCALES)
def test_k_quants(kind: Type, tmp_path: Path, write_gguf: Any) -> None:
    """1100 rows of 512 are more than one slab."""
    data = random_blocks(kind, rows=1100, blocks=2)
    write_gguf(tmp_path / "m.gguf", "qwen2", {"w": (data, kind)})
    got = GgufCheckpoint(tmp_path / "m.gguf").read("w")
    assert got.dtype == torch.float32
    assert got.std() > 0
    np.testing.assert_array_equal(got.numpy(), gguf.dequantize(data, kind))


def test_header_equals_the_gguf_packages_reader(tmp_path: Path, convert_to_gguf: Any) -> None:
    arch, model = MODELS["llama"]
    path = tmp_path / "m.gguf"
    convert_to_gguf(model, arch, path, Type.Q8_0, rope__scaling__type="none")
    ours, theirs = GgufFile(path), gguf.GGUFReader(path)
    for key, value in ours.metadata.items():
        assert theirs.fields[key].contents() == value, key
    assert len(ours.metadata) > 10
    assert list(ours.tensors) == [t.name for t in theirs.tensors]
    for tensor in theirs.tensors:
        entry = ours.tensors[tensor.name]
        assert entry.shape == tuple(int(n) for n in reversed(tensor.shape))
        assert (entry.kind, entry.offset) == (tensor.tensor_type, tensor.data_offset)


def randomise(model: PreTrainedModel) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name else 0.0
            parameter.normal_(centre, 0.15)


@pytest.mark.parametrize("case", MODELS)
def test_weights_come_back_under_their_hugging_face_names(
    case: str, tmp_path: Path, convert_to_gguf: Any
) -> None:
    arch, model = MODELS[case]
    randomise(model)
    convert_to_gguf(model, arch, tmp_path / "m.gguf", Type.F32)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    state = model.state_dict()
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    assert set(checkpoint.tensors) == set(state)
    for name, tensor in state.items():
        torch.testing.assert_close(checkpoint.read(name), tensor, rtol=0, atol=0)


@pytest.mark.parametrize("case", MODELS)
def test_config_equals_the_hugging_face_folders(case: str, tmp_path: Path, convert_to_gguf: Any) -> None:
    arch, model = MODELS[case]
    convert_to_gguf(model, arch, tmp_path / "m.gguf", Type.F32)
    model.save_pretrained(tmp_path)
    from_gguf, from_folder = load_config(tmp_path / "m.gguf", "llm"), load_config(tmp_path, "llm")
    assert isinstance(from_gguf, DecoderConfig)
    assert isinstance(from_folder, DecoderConfig)
    assert from_gguf.rms_norm_eps == pytest.approx(from_folder.rms_norm_eps)
    same = {"rms_norm_eps": 0}
    assert {**vars(from_gguf), **same} == {**vars(from_folder), **same}


@pytest.mark.parametrize("kind", [Type.Q8_0, Type.Q4_1])
def test_a_quantised_model_loads_in_float16(kind: Type, tmp_path: Path, convert_to_gguf: Any) -> None:
    arch, model = MODELS["llama"]
    randomise(model)
    convert_to_gguf(model, arch, tmp_path / "m.gguf", kind)
    config = load_config(tmp_path / "m.gguf", "llm")
    assert config.dtype == kind.name
    loaded = load_model(tmp_path / "m.gguf", config, torch.device("cpu"))
    assert loaded.dtype_used == "float16"


def test_rope_freqs_are_llama_3_scaling(tmp_path: Path, convert_to_gguf: Any) -> None:
    arch, model = MODELS["llama"]
    factors = np.linspace(1, 8, 8, dtype=np.float32)
    convert_to_gguf(model, arch, tmp_path / "m.gguf", Type.F32, rope_freqs=factors)
    config = load_config(tmp_path / "m.gguf", "llm")
    assert isinstance(config, DecoderConfig)
    assert config.rope.freq_factors == tuple(factors.tolist())
    load_model(tmp_path / "m.gguf", config, torch.device("cpu"))


def test_rope_scaling_metadata(tmp_path: Path, convert_to_gguf: Any) -> None:
    arch, model = MODELS["qwen2"]
    convert_to_gguf(
        model,
        arch,
        tmp_path / "m.gguf",
        Type.F32,
        rope__scaling__type="yarn",
        rope__scaling__factor=4.0,
        rope__scaling__original_context_length=16,
    )
    config = load_config(tmp_path / "m.gguf", "llm")
    assert isinstance(config, DecoderConfig)
    rope = config.rope
    assert (rope.rope_type, rope.factor, rope.original_max_position_embeddings) == ("yarn", 4.0, 16)
    assert rope.attention_factor is None


def test_unknown_architecture_and_type(tmp_path: Path, write_gguf: Any) -> None:
    write_gguf(tmp_path / "m.gguf", "mamba", {"w": np.zeros((2, 2), np.float32)})
    with pytest.raises(ConfigError, match=r"mamba.*served are LlamaForCausalLM"):
        load_config(tmp_path / "m.gguf", "llm")
    data = gguf.quantize(np.ones((2, 32), np.float32), Type.Q5_0)
    write_gguf(tmp_path / "q.gguf", "llama", {"token_embd.weight": (data, Type.Q5_0)})
    with pytest.raises(LoadError, match=r"token_embd\.weight is stored as Q5_0; served are BF16, F16"):
        open_checkpoint(tmp_path / "q.gguf")


def test_damaged_files(tmp_path: Path, convert_to_gguf: Any) -> None:
    arch, model = MODELS["llama"]
    path = tmp_path / "m.gguf"
    convert_to_gguf(model, arch, path, Type.F32)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(LoadError, match="is cut short"):
        open_checkpoint(path)
    for length in (0, 3, 30, 300, 700):
        path.write_bytes(whole[:length])
        with pytest.raises(LoadError, match=r"cut short|empty|not a GGUF file"):
            open_checkpoint(path)
        with pytest.raises(GgufError):
            load_config(path, "llm")
    path.write_bytes(b"GGML" + whole[4:])
    with pytest.raises(LoadError, match="is not a GGUF file"):
        open_checkpoint(path)
    path.write_bytes(b"GGUF\x01\x00\x00\x00" + whole[8:])
    with pytest.raises(LoadError, match="version 1"):
        open_checkpoint(path)


def test_split_files_are_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_uint16("split.count", 3)
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(LoadError, match="merge the parts"):
        open_checkpoint(tmp_path / "m.gguf")
