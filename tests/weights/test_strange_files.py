"""Files that a stranger wrote: whatever is wrong with them is said at once, with their name."""

import json
import os
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import save_file

from onecard.engines.api.errors import is_ours
from onecard.engines.kinds import KINDS
from onecard.engines.models.config import ConfigError
from onecard.engines.models.registry import load_config
from onecard.engines.text.generation_config import ModelFileError, load_generation_defaults, read_json
from onecard.engines.text.tokenizer import load_tokenizer
from onecard.engines.text.tokenizer_files import check_tokenizer
from onecard.engines.weights.checkpoint import LoadError
from onecard.engines.weights.gguf_file import GgufError, GgufFile
from onecard.engines.weights.loader import open_checkpoint, weight_needs
from onecard.registry.spec import EngineSpec, ModelSpec

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
BERT: dict[str, Any] = {**LLAMA, "architectures": ["BertModel"], "type_vocab_size": 2}
HUGE = 10**9


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A language model's folder, with weights of two layers in its header."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    vocabulary = {"a": 0, "b": 1, "ab": 2, "</s>": 3}
    tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [("a", "b")])).save(
        str(tmp_path / "tokenizer.json")
    )
    weights = {"model.embed_tokens.weight": (32, 16), "lm_head.weight": (32, 16), "model.norm.weight": (16,)}
    for layer in range(2):
        inside = {
            **{f"self_attn.{name}_proj": (16, 16) for name in "qkvo"},
            "mlp.gate_proj": (24, 16),
            "mlp.up_proj": (24, 16),
            "mlp.down_proj": (16, 24),
            "input_layernorm": (16,),
            "post_attention_layernorm": (16,),
        }
        weights |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in inside.items()}
    save_file({name: torch.ones(shape) for name, shape in weights.items()}, tmp_path / "model.safetensors")
    return tmp_path


def soon(run: Callable[[], object], error: type[Exception], said: str) -> None:
    """`run` raises `error` in no time: nothing was built or read that a file chose the size of."""
    began = time.monotonic()
    with pytest.raises(error, match=said):
        run()
    assert time.monotonic() - began < 5, "some 0.01 s alone, but other work may run beside"


@pytest.mark.parametrize(
    ("config", "kind"), [(LLAMA, "llm"), ({**LLAMA, "architectures": ["MistralForCausalLM"]}, "llm"),
                         ({**LLAMA, "architectures": ["Qwen2ForCausalLM"]}, "llm"), (BERT, "embedding")],
    ids=["llama", "mistral", "qwen2", "bert"],
)  # fmt: skip
@pytest.mark.parametrize(
    "key",
    ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
     "max_position_embeddings"],
)  # fmt: skip
@pytest.mark.parametrize("value", [HUGE, 10**30, 0, -1, 1.5, "12", True, [2], {}, float("nan"), float("inf")])
def test_a_size_that_makes_no_sense_is_refused_by_its_name(
    tmp_path: Path, config: dict[str, Any], kind: Any, key: str, value: Any
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    said = rf"config\.json: {key} is .*; it should be a whole number from 1 to [\d,]+"
    soon(lambda: load_config(tmp_path, kind), ConfigError, said)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_key_value_heads", HUGE),
        ("head_dim", "big"),
        ("head_dim", 7),
        ("rms_norm_eps", "1e-6"),
        ("rms_norm_eps", float("nan")),
        ("rope_theta", -1),
        ("rope_theta", "10000"),
        ("rope_scaling", {"rope_type": "linear", "factor": "2"}),
        ("rope_scaling", [1]),
        ("rope_scaling", {"rope_type": "longrope", "short_factor": ["a"] * 4, "long_factor": [1] * 4}),
        ("architectures", "LlamaForCausalLM"),
        ("architectures", [1]),
        ("hidden_act", ["silu"]),
    ],
)
def test_other_values_that_make_no_sense_are_refused_too(tmp_path: Path, key: str, value: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, key: value}))
    soon(lambda: load_config(tmp_path, "llm"), ConfigError, r"config\.json")


def test_more_layers_than_the_weights_have_are_refused_before_they_are_built(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**LLAMA, "num_hidden_layers": 900}))
    config = load_config(folder, "llm")
    said = r"the config says 900 layers \(num_hidden_layers\), but the weights have 2"
    soon(lambda: weight_needs(folder, config, "auto", "cpu"), LoadError, said)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("config.json", "config.json can't be read: it is a pipe"),
        ("tokenizer.json", "tokenizer.json can't be read: it is a pipe"),
        ("tokenizer_config.json", "tokenizer_config.json can't be read: it is a pipe"),
        ("generation_config.json", "generation_config.json can't be read: it is a pipe"),
        ("chat_template.jinja", "chat_template.jinja can't be read: it is a pipe"),
    ],
)
def test_a_pipe_in_a_model_s_folder_is_refused(folder: Path, name: str, said: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    spec = ModelSpec(name="m", source=str(folder))
    soon(lambda: KINDS["llm"].read(spec, folder), Exception, said)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "other.safetensors"])
def test_a_pipe_for_weights_is_refused(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / name)
    soon(lambda: open_checkpoint(folder), LoadError, f"{name} can't be read: it is a pipe")


def test_a_pipe_for_a_gguf_file_and_a_template_is_refused(folder: Path) -> None:
    pipe = folder / "m.gguf"
    os.mkfifo(pipe)
    soon(lambda: GgufFile(pipe), GgufError, "it is a pipe")
    soon(lambda: open_checkpoint(pipe), LoadError, "it is a pipe")
    spec = ModelSpec(name="m", source=str(folder), engine=EngineSpec(chat_template=str(pipe)))
    soon(lambda: KINDS["llm"].read(spec, folder), ModelFileError, "it is a pipe")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_small_file_that_is_huge_is_not_read(folder: Path, name: str) -> None:
    with (folder / name).open("wb") as file:
        file.truncate(1 << 34)  # a hole: it takes no disk
    spec = ModelSpec(name="m", source=str(folder))
    soon(lambda: KINDS["llm"].read(spec, folder), ValueError, f"{name} has 17,179,869,184 bytes")


def test_json_nested_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a":' * 200_000)
    soon(lambda: read_json(tmp_path / "a.json"), ModelFileError, r"a\.json is JSON nested too deeply")


def test_a_byte_order_mark_is_no_mistake(folder: Path) -> None:
    mark = b"\xef\xbb\xbf"
    (folder / "generation_config.json").write_text('{"temperature": 0.5}')
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    (folder / "chat_template.jinja").write_text("{{ 1 }}")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).write_bytes(mark + (folder / name).read_bytes())
    (folder / "chat_template.jinja").write_bytes(mark + b"{{ 1 }}")
    KINDS["llm"].read(ModelSpec(name="m", source=str(folder)), folder)
    assert load_generation_defaults(folder).sampling == {"temperature": 0.5}
    assert load_tokenizer(folder)._templates.sources == {"default": "{{ 1 }}"}


def test_a_safetensors_header_of_gigabytes_is_not_read(folder: Path) -> None:
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 90 << 20))
        file.truncate(1 << 30)
    soon(lambda: open_checkpoint(folder), LoadError, r"its header would have 94,371,840 bytes, of 33,554,432")


@pytest.mark.parametrize(
    "index",
    [[], {}, {"weight_map": []}, {"weight_map": {"a": 1}}, {"weight_map": {"a": "../../b.safetensors"}}],
)
def test_an_index_that_names_no_files_of_its_folder_is_refused(folder: Path, index: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    soon(lambda: open_checkpoint(folder), LoadError, r"index\.json is not a safetensors index")


def gguf(*entries: bytes, tensors: bytes = b"", count: int = 0, values: int | None = None) -> bytes:
    number = len(entries) if values is None else values
    return b"GGUF" + struct.pack("<IQQ", 3, count, number) + b"".join(entries) + tensors


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def array(key: str, kind: int, count: int) -> bytes:
    return text(key) + struct.pack("<IIQ", 9, kind, count)


ALIGNMENT = text("general.alignment") + struct.pack("<II", 4, 0)
TENSOR = text("w") + struct.pack("<I", 0) + struct.pack("<IQ", 0, 0)
EMPTY = text("w") + struct.pack("<IQ", 1, 0) + struct.pack("<IQ", 0, 0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gguf(ALIGNMENT), "its general.alignment is no power of two"),
        (gguf(text("general.alignment") + struct.pack("<I", 8) + text("x")), "no power of two"),
        (gguf(tensors=TENSOR, count=1), "the tensor 'w' has no shape"),
        (gguf(tensors=EMPTY, count=1), "the tensor 'w' has no shape"),
        (gguf(values=1 << 40), "more entries than any model's"),
        (gguf(count=1 << 40), "more entries than any model's"),
        (gguf(values=90_000) + bytes(30 << 20), "stands twice"),
        (gguf(array("a", 0, 25 << 20)) + bytes(30 << 20), "damaged or cut short"),
        (gguf(array("a", 8, 25 << 20)) + bytes(200 << 20), "damaged or cut short"),
        (gguf(text("a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 2000), "damaged or cut short"),
        (b"", "it is empty"),
    ],
    ids=range(11),
)
def test_a_gguf_header_that_hangs_or_bloats_its_reader_is_refused(
    tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    soon(lambda: GgufFile(tmp_path / "m.gguf"), GgufError, rf"m\.gguf is .*{said}")


def test_a_gguf_file_without_tokens_is_refused_by_its_name(tmp_path: Path) -> None:
    model = text("tokenizer.ggml.model") + struct.pack("<I", 8) + text("gpt2")
    (tmp_path / "m.gguf").write_bytes(gguf(model) + bytes(64))
    soon(lambda: check_tokenizer(tmp_path / "m.gguf"), ModelFileError, r"m\.gguf holds no tokenizer")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", "0.6"),
        ("temperature", -1),
        ("temperature", float("nan")),
        ("top_p", 2),
        ("top_k", 1.5),
        ("top_k", 10**30),
        ("min_p", [0.1]),
        ("repetition_penalty", 0),
        ("max_new_tokens", "many"),
        ("max_new_tokens", True),
        ("eos_token_id", "2"),
        ("eos_token_id", [1, None]),
        ("eos_token_id", -1),
    ],
)
def test_a_generation_config_of_other_things_than_numbers_is_refused_when_it_is_read(
    folder: Path, key: str, value: Any
) -> None:
    (folder / "generation_config.json").write_text(json.dumps({key: value}))
    said = rf"generation_config\.json: {key} "
    soon(lambda: KINDS["llm"].read(ModelSpec(name="m", source=str(folder)), folder), ModelFileError, said)


def test_a_model_s_own_template_that_does_not_parse_is_told_from_its_files(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}")
    spec = ModelSpec(name="m", source=str(folder))
    soon(lambda: KINDS["llm"].read(spec, folder), ModelFileError, f"chat template of {folder} doesn't parse")


def refusal(spec: ModelSpec, folder: Path) -> str | None:
    """What is said of a model's files, in an error of ours; None where they can be served."""
    try:
        headers = KINDS["llm"].read(spec, folder)
        weight_needs(folder, headers.config, "auto", "cpu")
    except Exception as error:
        if is_ours(error):
            return str(error)
        raise
    return None


def test_damaged_files_of_a_model_are_refused_with_an_error_of_ours(folder: Path) -> None:
    """A loop of mutations: each reader names its file, whatever is in it."""
    chance = random.Random(11)
    (folder / "tokenizer_config.json").write_text('{"eos_token": {"content": "</s>"}, "add_bos_token": true}')
    (folder / "generation_config.json").write_text('{"temperature": 0.5, "eos_token_id": [3]}')
    spec = ModelSpec(name="m", source=str(folder))
    for name in ("config.json", "tokenizer_config.json", "generation_config.json", "model.safetensors"):
        whole = (folder / name).read_bytes()
        for _ in range(60):
            damaged = bytearray(whole)
            for _ in range(chance.randint(1, 3)):
                damaged[chance.randrange(min(len(damaged), 1500))] = chance.choice(b'0"[]{}:,-e\xff\x00')
            (folder / name).write_bytes(damaged)
            said = refusal(spec, folder)
            assert said is None or str(folder) in said or said.startswith("m: ")
        (folder / name).write_bytes(whole)
