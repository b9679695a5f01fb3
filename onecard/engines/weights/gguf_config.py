"""GGUF metadata as the config.json that the model would have on Hugging Face."""

from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from onecard.engines.weights.gguf_file import GgufError, GgufFile

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def transformers_config(path: Path) -> dict[str, Any]:
    """The config under transformers' keys. Raises `GgufError` for a damaged file or missing metadata.

    llama.cpp folds Mistral into its llama architecture; a sliding window tells it apart.
    """
    file = GgufFile(path)
    architecture = _ARCHITECTURES.get(file.architecture, f"{file.architecture} (llama.cpp's name)")
    if architecture not in _ARCHITECTURES.values():
        return {"architectures": [architecture]}
    window = file.value("attention.sliding_window")
    if window and file.architecture == "llama":
        architecture = "MistralForCausalLM"
    table = file.tensors.get("token_embd.weight")
    if table is None:
        raise GgufError(f"{path} lacks token_embd.weight: it isn't a whole language model")
    heads, hidden = _number(file, "attention.head_count"), _number(file, "embedding_length")
    head_dim = file.value("attention.key_length") or hidden // heads
    return {
        "architectures": [architecture],
        "vocab_size": table.shape[0],
        "hidden_size": hidden,
        "intermediate_size": _number(file, "feed_forward_length"),
        "num_hidden_layers": _number(file, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _number(file, "attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": file.value("attention.layer_norm_rms_epsilon", 1e-6),
        "max_position_embeddings": _number(file, "context_length"),
        "rope_parameters": _rope(file, head_dim),
        "sliding_window": window,
        "use_sliding_window": False,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "attention_output_bias": "blk.0.attn_output.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
        "dtype": _main_type(file),
    }


def _number(file: GgufFile, key: str, default: int | None = None) -> int:
    value = file.value(key, default)
    if isinstance(value, list) and len(set(value)) == 1:
        value = value[0]
    if not isinstance(value, int):
        raise GgufError(
            f"{file.path}: {file.architecture}.{key} must be one number for all layers, not {value}"
        )
    return value


def _rope(file: GgufFile, head_dim: int) -> dict[str, Any]:
    kind = file.value("rope.scaling.type", "none")
    rope = {
        "rope_type": "default" if kind == "none" else kind,
        "rope_theta": file.value("rope.freq_base", 10000.0),
        "partial_rotary_factor": file.value("rope.dimension_count", head_dim) / head_dim,
        "factor": file.value("rope.scaling.factor", 1.0),
        "original_max_position_embeddings": file.value("rope.scaling.original_context_length"),
        "attention_factor": _attention_factor(file) if kind == "yarn" else None,
    }
    if "rope_freqs.weight" in file.tensors:
        rope["freq_factors"] = _rope_freqs(file)
    return rope


def _attention_factor(file: GgufFile) -> float | None:
    """llama.cpp multiplies YaRN's own factor by `attn_factor`."""
    factor, extra = file.value("rope.scaling.factor", 1.0), file.value("rope.scaling.attn_factor")
    return None if extra is None else extra * (1.0 + 0.1 * float(np.log(factor)))


def _rope_freqs(file: GgufFile) -> list[float]:
    """Llama 3's scaling, worked out for each frequency when the file was made (float32)."""
    tensor = file.tensors["rope_freqs.weight"]
    if tensor.kind != gguf.GGMLQuantizationType.F32 or tensor.offset + 4 * tensor.shape[0] > len(file.data):
        raise GgufError(f"{file.path}: rope_freqs.weight is not float32, or cut off")
    return np.frombuffer(file.data, np.float32, tensor.shape[0], tensor.offset).tolist()


def _main_type(file: GgufFile) -> str:
    """The type that most weights are stored in."""
    sizes: Counter[int] = Counter()
    for tensor in file.tensors.values():
        sizes[tensor.kind] += int(np.prod(tensor.shape))
    name = gguf.GGMLQuantizationType(sizes.most_common(1)[0][0]).name
    return {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}.get(name, name)
