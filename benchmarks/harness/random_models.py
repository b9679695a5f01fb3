"""Checkpoints of true shapes with random weights, written as a hub would hold them.

Speed depends on shapes, not on values, so no weights need to travel to the machine that is measured.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import save_file

SHARD_BYTES = 4 << 30

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5}
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rms_norm_eps": 1e-6}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "rms_norm_eps": 1e-6}
BERT = {"architectures": ["BertModel"], "model_type": "bert", "type_vocab_size": 2, "pad_token_id": 0}
XLM_R = {
    "architectures": ["XLMRobertaModel"],
    "model_type": "xlm-roberta",
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "layer_norm_eps": 1e-5,
}
ENCODERS = ("bert", "xlm-roberta")
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)


def _config(family: dict[str, Any], *sizes: int, tied: bool = False, theta: float = 1e6) -> dict[str, Any]:
    raw = {**family, **dict(zip(SIZES, sizes, strict=True)), "tie_word_embeddings": tied}
    if family["model_type"] in ENCODERS:
        del raw["num_key_value_heads"], raw["head_dim"], raw["tie_word_embeddings"]
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return {**raw, **dropout, "hidden_act": "gelu"}
    return {**raw, "rope_theta": theta, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2}


CONFIGS: dict[str, dict[str, Any]] = {
    "smollm2-135m": _config(LLAMA, 49152, 576, 1536, 30, 9, 3, 64, 8192, tied=True, theta=1e5),
    "qwen3-0.6b": _config(QWEN3, 151936, 1024, 3072, 28, 16, 8, 128, 40960, tied=True),
    "qwen2.5-7b": _config(QWEN2, 152064, 3584, 18944, 28, 28, 4, 128, 32768),
    "minilm": _config(BERT, 30522, 384, 1536, 6, 12, 12, 32, 512),
    "bge-m3": _config(XLM_R, 250002, 1024, 4096, 24, 16, 16, 64, 8194),
    "tiny-llama": _config(LLAMA, 512, 96, 192, 2, 3, 1, 32, 2048, tied=True),
    "tiny-qwen3": _config(QWEN3, 512, 64, 128, 2, 4, 2, 32, 2048, tied=True),
    "tiny-qwen2": _config(QWEN2, 512, 56, 112, 2, 7, 1, 8, 2048),
    "tiny-bert": _config(BERT, 512, 64, 128, 2, 4, 4, 16, 512),
    "tiny-xlm-r": _config(XLM_R, 512, 64, 128, 2, 4, 4, 16, 130),
}


def parameter_shapes(raw: dict[str, Any]) -> dict[str, torch.Size]:
    """Names and shapes of the checkpoint's tensors, as transformers would save them."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    options = {key: value for key, value in raw.items() if key not in ("model_type", "architectures")}
    config = AutoConfig.for_model(raw["model_type"], **options)
    factory = AutoModel if raw["model_type"] in ENCODERS else AutoModelForCausalLM
    with torch.device("meta"):
        model = factory.from_config(config)
    tied = {"lm_head.weight"} if raw.get("tie_word_embeddings") else set()
    return {
        name: p.shape for name, p in model.state_dict().items() if p.is_floating_point() and name not in tied
    }


def weight_bytes(raw: dict[str, Any], dtype: torch.dtype) -> tuple[int, int]:
    """(all weights, those that one decode step reads: a row of the embedding, unless it is the head, too)."""
    shapes = parameter_shapes(raw)
    total = sum(shape.numel() for shape in shapes.values())
    unread = 0 if raw.get("tie_word_embeddings") else shapes["model.embed_tokens.weight"].numel()
    return total * dtype.itemsize, (total - unread) * dtype.itemsize


def write_model(name: str, folder: Path, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> None:
    """Config, sharded safetensors and a tokenizer of words (t5 is token 5) of model `name` into `folder`."""
    raw = CONFIGS[name]
    generator = torch.Generator(device).manual_seed(seed)
    shards: list[dict[str, torch.Tensor]] = [{}]
    weight_map: dict[str, str] = {}
    size = 0
    for tensor, shape in parameter_shapes(raw).items():
        values = torch.empty(shape, dtype=dtype, device=device)
        gain = "norm" in tensor.lower() and tensor.endswith("weight")
        values.normal_(1.0 if gain else 0.0, 0.1 if gain else 0.02, generator=generator)
        if size + values.nbytes > SHARD_BYTES and shards[-1]:
            _write_shard(folder, shards, weight_map)
            shards.append({})
            size = 0
        shards[-1][tensor] = values.cpu()
        size += values.nbytes
    _write_shard(folder, shards, weight_map)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({**raw, "dtype": str(dtype)[6:]}))
    write_tokenizer(folder, raw["vocab_size"], raw.get("pad_token_id", 0))


def _write_shard(folder: Path, shards: list[dict[str, torch.Tensor]], weight_map: dict[str, str]) -> None:
    """The last shard goes to disk and out of memory."""
    file = f"model-{len(shards):05d}.safetensors"
    save_file(shards[-1], folder / file, metadata={"format": "pt"})
    weight_map.update(dict.fromkeys(shards[-1], file))
    shards[-1].clear()


def write_tokenizer(folder: Path, vocab_size: int, pad_token_id: int) -> None:
    vocab = {"<pad>" if i == pad_token_id else f"t{i}": i for i in range(vocab_size)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="t2"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@contextmanager
def random_model(name: str, dtype: torch.dtype, device: str = "cpu") -> Iterator[Path]:
    """A folder with the model, in memory where there is room, gone afterwards."""
    needed = weight_bytes_of_file(name, dtype)
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > needed * 1.1 + (1 << 30)
    with tempfile.TemporaryDirectory(dir=memory if roomy else None, prefix=f"{name}-") as folder:
        write_model(name, Path(folder), dtype, device)
        if device != "cpu":
            torch.cuda.empty_cache()
        yield Path(folder)


def weight_bytes_of_file(name: str, dtype: torch.dtype) -> int:
    return sum(shape.numel() for shape in parameter_shapes(CONFIGS[name]).values()) * dtype.itemsize
