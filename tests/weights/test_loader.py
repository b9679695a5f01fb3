"""The loader: what it refuses and how it says so, whose memory it takes, and how much."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from onecard.engines.layers import linear_methods
from onecard.engines.layers.linear_methods import PlainLinear
from onecard.engines.layers.precision import Precision
from onecard.engines.memory.arena import DeviceArena
from onecard.engines.memory.homes import pages_for
from onecard.engines.models.config import ConfigError
from onecard.engines.models.registry import load_config
from onecard.engines.weights import loader
from onecard.engines.weights.allocator import HeapAllocator, HomeAllocator
from onecard.engines.weights.checkpoint import LoadError
from onecard.engines.weights.loader import LoadedModel, load_model, open_checkpoint, weight_needs

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def load(folder: Path, **options: Any) -> LoadedModel:
    return load_model(folder, load_config(folder, "llm"), options.pop("device", CPU), **options)


def edit(folder: Path, change: Any) -> None:
    file = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def tied(request: pytest.FixtureRequest, folder: Path) -> bool:
    if request.param:
        config = folder / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "tie_word_embeddings": True}))
    return request.param


@pytest.mark.parametrize("method", ["auto", "float32", "float16", "bfloat16", "as on a card", "fallback"])
def test_what_is_held_was_foretold(
    method: str, tied: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every way of storing a linear layer's weight, tied or not, on the heap and in a home."""
    if method == "as on a card":
        plain = Precision(torch.bfloat16, torch.bfloat16, PlainLinear(torch.bfloat16))
        monkeypatch.setattr(loader, "precision_for", lambda device_type, storage: plain)
    elif method == "fallback":
        monkeypatch.setattr(linear_methods, "works", lambda method_class: False)
    dtype = method if method.startswith(("float", "bfloat")) else "auto"
    foretold = weight_needs(folder, load_config(folder, "llm"), dtype, "cpu")
    allocator = HeapAllocator(CPU)
    loaded = load(folder, dtype=dtype, allocator=allocator)
    assert loaded.held == foretold
    assert loaded.weight_bytes == foretold.total == allocator.nbytes
    assert (foretold.packed > 0) == (method in ("auto", "float32", "float16"))
    assert loaded.ignored == (("lm_head.weight",) if tied else ())
    arena = DeviceArena(pages_for(foretold.total, 4096) * 4096, 4096)
    home = HomeAllocator(arena, range(arena.num_pages))
    load(folder, dtype=dtype, allocator=home)
    assert (len(home.weights), home.booked_bytes) == (foretold.home, foretold.packed)


def test_on_a_card_weights_are_the_parameters(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors").values()
    table = 32 * 8 * 4
    needs = weight_needs(folder, load_config(folder, "llm"), "auto", "cuda")
    # q, k and v, and gate and up, are one weight each: their sizes are multiples of 256 here, so no gaps.
    assert needs.home == sum(-(-2 * tensor.numel() // 256) * 256 for tensor in tensors) + table
    assert needs.packed == 0


def test_in_a_home_every_weight_is_a_view_at_an_aligned_place(folder: Path) -> None:
    arena = DeviceArena(60 * 5000, 5000)
    arena.tensor.fill_(0xFF)
    needs = weight_needs(folder, load_config(folder, "llm"), "bfloat16", "cpu")
    pages = range(3, 3 + pages_for(needs.total, 5000))
    home = HomeAllocator(arena, pages)
    model = load(folder, dtype="bfloat16", allocator=home).model
    alone = load(folder, dtype="bfloat16").model
    x = torch.randn(3, 32)
    with torch.inference_mode():
        torch.testing.assert_close(model.compute_logits(x), alone.compute_logits(x), rtol=0, atol=0)
    tensors = [*model.parameters(), *model.buffers()]
    spans = sorted((t.data_ptr() - arena.tensor.data_ptr(), t.nbytes) for t in tensors)
    assert all(start % 256 == 0 for start, _ in spans)
    assert all(start + nbytes <= after for (start, nbytes), (after, _) in pairwise(spans))
    assert spans[0][0] >= pages.start * 5000
    assert sum(spans[-1]) <= pages.stop * 5000
    outside = torch.cat((arena.tensor[: pages.start * 5000], arena.tensor[pages.stop * 5000 :]))
    assert (outside == 0xFF).all()
    kept = home.weights.clone()
    home.weights.fill_(0)
    home.weights.copy_(kept)
    with torch.inference_mode():
        torch.testing.assert_close(model.compute_logits(x), alone.compute_logits(x), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_home_too_small_says_so(dtype: str, folder: Path) -> None:
    needs = weight_needs(folder, load_config(folder, "llm"), dtype, "cpu")
    arena = DeviceArena(needs.total - 1, 1)
    with pytest.raises(
        LoadError, match=r"takes .* of its model's home of .* set `dtype:` to bfloat16 or float32"
    ):
        load(folder, dtype=dtype, allocator=HomeAllocator(arena, range(arena.num_pages)))


def test_every_parameters_memory_is_asked_for(folder: Path) -> None:
    class Recording(HeapAllocator):
        def __init__(self) -> None:
            super().__init__(CPU)
            self.given: dict[str, torch.Tensor] = {}
            self.counted: dict[str, int] = {}

        def empty(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
            assert name not in self.given
            self.given[name] = super().empty(name, shape, dtype)
            return self.given[name]

        def count(self, name: str, nbytes: int) -> None:
            self.counted[name] = nbytes

    allocator = Recording()
    model = load(folder, allocator=allocator).model
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert {name: tensor.data_ptr() for name, tensor in held.items()} == {
        name: tensor.data_ptr() for name, tensor in allocator.given.items()
    }
    assert allocator.counted["layers.1.self_attn.qkv_proj.weight"] == 4 * (32 + 16 + 16) * 32


def test_meta_device_stays_empty_until_loaded(folder: Path) -> None:
    model = load(folder).model
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert not any(tensor.requires_grad for tensor in model.parameters())


def test_progress_ends_at_the_total(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    load(folder, progress=lambda done, total: seen.append((done, total)))
    assert len(seen) == len(open_checkpoint(folder).tensors)
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == sum(t.nbytes for t in open_checkpoint(folder).tensors.values())


def test_missing_extra_and_misshapen_tensors_are_named(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.0.self_attn.k_proj.weight"]
        tensors["model.layers.9.mlp.up_proj.weight"] = torch.zeros(2)
        tensors["model.norm.weight"] = torch.zeros(31)

    edit(folder, change)
    with pytest.raises(LoadError) as error:
        load(folder)
    message = str(error.value)
    assert "1 tensors that the model needs are missing (layers.0.self_attn.k_proj.weight)" in message
    assert "1 tensors have no place in the model (model.layers.9.mlp.up_proj.weight)" in message
    assert "model.norm.weight is [31], not [32]" in message
    with pytest.raises(LoadError, match="k_proj"):
        weight_needs(folder, load_config(folder, "llm"), "auto", "cpu")


def test_a_long_list_of_names_is_cut(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.update({f"extra.{i:02}": torch.zeros(1) for i in range(25)}))
    with pytest.raises(LoadError, match=r"25 tensors have no place .*extra\.09 and 15 more\)"):
        load(folder)


def test_pickles_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(LoadError, match=r"holds no \.safetensors file"):
        open_checkpoint(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(LoadError, match="is a pickle, which can run code"):
        open_checkpoint(folder)
    with pytest.raises(LoadError, match="is a pickle, which can run code"):
        open_checkpoint(folder / "pytorch_model.bin")


@pytest.mark.parametrize("kept", [0, 5, 200, 9000])
def test_truncated_safetensors(kept: int, folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(LoadError, match=r"model\.safetensors is damaged or cut short"):
        load(folder)


def shard(folder: Path) -> dict[str, str]:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i in range(3):
        part = dict(list(tensors.items())[i::3])
        save_file(part, folder / f"model-{i}.safetensors", metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, f"model-{i}.safetensors"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


def test_shards_load_as_one(folder: Path) -> None:
    whole = load(folder).model
    shard(folder)
    parts = load(folder).model
    x = torch.randn(3, 32)
    with torch.inference_mode():
        torch.testing.assert_close(parts.compute_logits(x), whole.compute_logits(x), rtol=0, atol=0)
        for a, b in zip(parts.layers, whole.layers):
            torch.testing.assert_close(a.mlp.forward(x, None), b.mlp.forward(x, None), rtol=0, atol=0)


def test_a_missing_shard_is_named(folder: Path) -> None:
    shard(folder)
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(LoadError, match=r"lacks 1 of the 3 files of its index: model-1\.safetensors"):
        load(folder)


def test_a_shard_without_its_tensors_is_named(folder: Path) -> None:
    weight_map = shard(folder)
    name = next(name for name, file in weight_map.items() if file == "model-2.safetensors")
    save_file({"other": torch.zeros(1)}, folder / "model-2.safetensors")
    with pytest.raises(LoadError, match=r"model-2\.safetensors lacks tensors .*" + name.replace(".", r"\.")):
        load(folder)


def test_shards_without_an_index_are_refused(folder: Path) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(LoadError, match=r"3 \.safetensors files and no model\.safetensors\.index\.json"):
        load(folder)


def test_values_beyond_float16(folder: Path) -> None:
    """A linear layer keeps them in float32; an embedding table can't, and says what to do."""
    edit(folder, lambda tensors: tensors["model.layers.0.mlp.down_proj.weight"].mul_(1e7))
    exact, narrow = load(folder).model, load(folder, dtype="float16").model
    x = torch.randn(2, 48)
    with torch.inference_mode():
        expected = exact.layers[0].mlp.down_proj.forward(x, None)
        torch.testing.assert_close(narrow.layers[0].mlp.down_proj.forward(x, None), expected)
    edit(folder, lambda tensors: tensors["model.embed_tokens.weight"].mul_(1e7))
    with pytest.raises(
        LoadError, match=r"embed_tokens\.weight holds values beyond float16.*bfloat16 or float32"
    ):
        load(folder, dtype="float16")


def test_auto_follows_the_weights_not_the_configs_claim(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.update({n: t.to(torch.bfloat16) for n, t in tensors.items()}))
    assert load(folder).dtype_used == "float16"
    assert load(folder, dtype="float32").dtype_used == "float32"
    with pytest.raises(LoadError, match="choose auto, float32, float16, bfloat16"):
        load(folder, dtype="int8")


def test_configs_that_are_not_served(folder: Path) -> None:
    file = folder / "config.json"
    good = json.loads(file.read_text())
    for change, message in (
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM; served are LlamaForCausalLM"),
        ({"architectures": None}, "not named"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"quantization_config": {"quant_method": "awq"}}, "is quantized"),
        ({"num_key_value_heads": 3}, "not a multiple"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "rope_type is 'spiral'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "needs a factor"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "short_factor and long_factor"),
    ):
        file.write_text(json.dumps({**good, **change}))
        with pytest.raises(ConfigError, match=message):
            load_config(folder, "llm")
    file.write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        load_config(folder, "llm")
    file.unlink()
    with pytest.raises(ConfigError, match=r"neither a \.gguf file nor a folder"):
        load_config(folder, "llm")
