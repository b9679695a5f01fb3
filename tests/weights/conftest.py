"""Small GGUF files, written by the `gguf` package as llama.cpp's converter would."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from transformers import PreTrainedModel

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    stem, suffix = name.rsplit(".", 1)
    if stem in NAMES:
        return f"{NAMES[stem]}.{suffix}"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[inner]}.{suffix}"


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of a head: row 0 of its first half, row 0 of its second, row 1 of its first, ..."""
    per_head = rows.reshape(heads, -1, *rows.shape[1:])
    half = per_head.shape[1] // 2
    out = np.empty_like(per_head)
    out[:, 0::2], out[:, 1::2] = per_head[:, :half], per_head[:, half:]
    return out.reshape(rows.shape)


@pytest.fixture
def write_gguf() -> Callable[..., None]:
    """`write_gguf(path, arch, tensors, **metadata)`: tensors are float32 arrays or (bytes, type) pairs."""

    def write(path: Path, arch: str, tensors: dict[str, Any], **metadata: Any) -> None:
        writer = gguf.GGUFWriter(path, arch)
        for key, value in metadata.items():
            name = f"{arch}.{key.replace('__', '.')}"
            if isinstance(value, str):
                writer.add_string(name, value)
            elif isinstance(value, float):
                writer.add_float32(name, value)
            else:
                writer.add_uint32(name, value)
        writer.add_array("tokenizer.ggml.tokens", ["a", "é", "<s>"])
        for name, tensor in tensors.items():
            data, kind = tensor if isinstance(tensor, tuple) else (tensor, None)
            writer.add_tensor(name, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return write


@pytest.fixture
def convert_to_gguf(write_gguf: Callable[..., None]) -> Callable[..., None]:
    """`convert_to_gguf(model, arch, path, kind)`: a transformers model, its matrices stored as `kind`."""

    def convert(
        model: PreTrainedModel, arch: str, path: Path, kind: gguf.GGMLQuantizationType, **extra: Any
    ) -> None:
        config = model.config
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        tensors: dict[str, Any] = {}
        for name, tensor in model.state_dict().items():
            if name == "lm_head.weight" and config.tie_word_embeddings:
                continue
            rows = tensor.float().numpy()
            projection = name.split(".")[-2]
            if arch == "llama" and projection in heads:
                rows = interleaved(rows, heads[projection])
            if rows.ndim == 2:
                tensors[gguf_name(name)] = (gguf.quantize(rows, kind), kind)
            else:
                tensors[gguf_name(name)] = rows
        if "rope_freqs" in extra:
            tensors["rope_freqs.weight"] = extra.pop("rope_freqs")
        metadata: dict[str, Any] = {
            "block_count": config.num_hidden_layers,
            "context_length": config.max_position_embeddings,
            "embedding_length": config.hidden_size,
            "feed_forward_length": config.intermediate_size,
            "attention__head_count": config.num_attention_heads,
            "attention__head_count_kv": config.num_key_value_heads,
            "attention__layer_norm_rms_epsilon": config.rms_norm_eps,
            "attention__key_length": getattr(config, "head_dim", None)
            or config.hidden_size // config.num_attention_heads,
            "rope__freq_base": float(config.rope_parameters["rope_theta"]),
        }
        write_gguf(path, arch, tensors, **metadata, **extra)

    return convert
