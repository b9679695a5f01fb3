"""GGUF files as Hugging Face would have them: weights, dequantised by the `gguf` package a slab of rows at a
time; and metadata, as the model's config.json."""

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from onecard.engines.weights.checkpoint import LoadError, TensorInfo
from onecard.engines.weights.gguf_file import GgufError, GgufFile, GgufTensor

_Type = gguf.GGMLQuantizationType
_PLAIN = {_Type.F32: torch.float32, _Type.F16: torch.float16, _Type.BF16: torch.bfloat16}
_QUANTISED = {_Type.Q8_0, _Type.Q4_0, _Type.Q4_1, _Type.Q4_K, _Type.Q5_K, _Type.Q6_K}

_TOP_LEVEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONFIGURATION = {"rope_freqs.weight"}
"""Tensors that hold settings; the config has them."""

_SLAB = 1 << 17
"""Weights that are dequantised together: the arithmetic's many temporaries then stay in the processor's
cache."""


class GgufCheckpoint:
    """A GGUF file under the names of the Hugging Face checkpoint that it was made from."""

    def __init__(self, path: Path):
        try:
            self._file = GgufFile(path)
        except GgufError as error:
            raise LoadError(str(error)) from error
        if self._file.metadata.get("split.count", 1) not in (0, 1):
            raise LoadError(
                f"{path} is one part of a split GGUF; merge the parts first (llama-gguf-split --merge)"
            )
        self._entries: dict[str, GgufTensor] = {}
        self.tensors: dict[str, TensorInfo] = {}
        for name, tensor in self._file.tensors.items():
            if name not in _CONFIGURATION:
                ours = hugging_face_name(name)
                self._entries[ours] = tensor
                self.tensors[ours] = _info(path, name, tensor, len(self._file.data))

    def read(self, name: str) -> torch.Tensor:
        entry, info = self._entries[name], self.tensors[name]
        data = self._file.data[entry.offset : entry.offset + info.nbytes]
        weights = dequantise(data, _Type(entry.kind), info.shape)
        if self._file.architecture == "llama" and (heads := self._heads_of(name)):
            weights = from_interleaved(weights, heads)
        return weights

    def _heads_of(self, name: str) -> int | None:
        heads = _number(self._file, "attention.head_count")
        if ".q_proj." in name:
            return heads
        return _number(self._file, "attention.head_count_kv", heads) if ".k_proj." in name else None


def hugging_face_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; a name that isn't known stays as it
    is."""
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if layer and layer[2] in _IN_LAYER:
        return f"model.layers.{layer[1]}.{_IN_LAYER[layer[2]]}.{layer[3]}"
    stem, _, suffix = name.rpartition(".")
    return f"{_TOP_LEVEL[stem]}.{suffix}" if stem in _TOP_LEVEL else name


def from_interleaved(weights: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo llama.cpp's order of the rows of q and k, `[heads * dim, ...]`.

    It rotates neighbours (0, 1), (2, 3), ... where Hugging Face rotates halves (0, dim / 2), ..., and so it
    stores row i of a head's first half before row i of its second half.
    """
    rows = weights.shape[0]
    pairs = weights.view(heads, rows // heads // 2, 2, *weights.shape[1:])
    return pairs.transpose(1, 2).reshape(weights.shape)


def dequantise(data: np.ndarray, kind: gguf.GGMLQuantizationType, shape: tuple[int, ...]) -> torch.Tensor:
    """Bytes of a tensor `[..., columns]` to its weights: in their own dtype if plain, else in float32.

    Plain tensors are views of `data`.
    """
    if kind in _PLAIN:
        return torch.from_numpy(data).view(_PLAIN[kind]).view(shape)
    columns = shape[-1]
    rows = data.reshape(-1, data.size * columns // int(np.prod(shape)))
    out = np.empty((rows.shape[0], columns), dtype=np.float32)
    step = max(1, _SLAB // columns)
    for start in range(0, rows.shape[0], step):
        out[start : start + step] = gguf.dequantize(rows[start : start + step], kind)
    return torch.from_numpy(out).view(shape)


def _info(path: Path, name: str, tensor: GgufTensor, file_size: int) -> TensorInfo:
    try:
        kind = _Type(tensor.kind)
    except ValueError as error:
        raise LoadError(f"{path}: {name} has the unknown type {tensor.kind}") from error
    if kind not in _PLAIN and kind not in _QUANTISED:
        served = ", ".join(sorted(t.name for t in (*_PLAIN, *_QUANTISED)))
        raise LoadError(f"{path}: {name} is stored as {kind.name}; served are {served}")
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    count = math.prod(tensor.shape)
    if tensor.shape[-1] % block:
        raise LoadError(
            f"{path}: {name} has rows of {tensor.shape[-1]}, not a multiple of {kind.name}'s {block}"
        )
    nbytes = count // block * block_bytes
    if tensor.offset + nbytes > file_size:
        raise LoadError(
            f"{path} is cut short: {name} ends at byte {tensor.offset + nbytes} of {file_size}; "
            "fetch it again"
        )
    return TensorInfo(tensor.shape, _PLAIN.get(kind), nbytes)


_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def transformers_config(path: Path) -> dict[str, Any]:
    """The config under transformers' keys. Raises `GgufError` for a damaged file or missing metadata.

    llama.cpp folds Mistral into its llama architecture; a sliding window tells it apart.
    """
    file = GgufFile(path)
    try:
        return _described(file)
    except (TypeError, LookupError, ArithmeticError) as error:
        raise GgufError(f"{path} says what makes no sense: {type(error).__name__}: {error}") from error


def _described(file: GgufFile) -> dict[str, Any]:
    architecture = _ARCHITECTURES.get(file.architecture, f"{file.architecture} (llama.cpp's name)")
    if architecture not in _ARCHITECTURES.values():
        return {"architectures": [architecture]}
    window = file.value("attention.sliding_window")
    if window and file.architecture == "llama":
        architecture = "MistralForCausalLM"
    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise GgufError(f"{file.path} lacks the matrix token_embd.weight: it isn't a whole language model")
    heads, hidden = _number(file, "attention.head_count"), _number(file, "embedding_length")
    head_dim = _number(file, "attention.key_length", max(1, hidden // heads))
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
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise GgufError(
            f"{file.path}: {file.architecture}.{key} must be one number for all layers, not {str(value)[:90]}"
        )
    return value


def _rope(file: GgufFile, head_dim: int) -> dict[str, Any]:
    kind = file.value("rope.scaling.type", "none")
    rope = {
        "rope_type": "default" if kind == "none" else kind,
        "rope_theta": file.value("rope.freq_base", 10000.0),
        "partial_rotary_factor": _number(file, "rope.dimension_count", head_dim) / head_dim,
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
    if not isinstance(factor, float | int) or not isinstance(extra, float | int | None) or factor <= 0:
        raise GgufError(f"{file.path}: its rope.scaling factors should be numbers above 0")
    return None if extra is None else extra * (1.0 + 0.1 * math.log(factor))


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
        sizes[tensor.kind] += math.prod(tensor.shape)
    try:
        name = gguf.GGMLQuantizationType(sizes.most_common(1)[0][0]).name
    except ValueError as error:
        raise GgufError(f"{file.path}: most of its weights are of a type that isn't known") from error
    return {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}.get(name, name)
