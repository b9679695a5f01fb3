"""SmolLM2 and MiniLM as the demo serves them, against transformers on the same weights."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import BertModel, LlamaConfig, LlamaForCausalLM

from onecard.engines.models.config import DecoderConfig
from onecard.engines.models.registry import load_config
from onecard.engines.weights.gguf import hugging_face_name
from onecard.engines.weights.loader import load_model, weight_needs

pytestmark = pytest.mark.weights

PROMPT = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712]
"""The start of SmolLM2's own chat template."""


def reference_llama(path: Path) -> LlamaForCausalLM:
    """transformers' model, filled from the gguf package's own reader; q and k in Hugging Face's order."""
    config = load_config(path, "llm")
    assert isinstance(config, DecoderConfig)
    state = {}
    for tensor in gguf.GGUFReader(path).tensors:
        name, shape = hugging_face_name(tensor.name), [int(n) for n in reversed(tensor.shape)]
        rows = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(
            name.split(".")[-2]
        )
        if heads:
            order = np.arange(shape[0]).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
            rows = rows[order]
        state[name] = torch.tensor(rows)
    model_config = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope.rope_theta},
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(model_config)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(model_config)
    return model.eval()


def test_smollm2_logits_and_greedy_tokens(smollm2_path: Path, paged_runner: Any) -> None:
    """Greedy tokens are transformers' own: given the same text, its logits are highest there."""
    runner = paged_runner(smollm2_path, "float32", block_size=16)
    runner.add("a", PROMPT)
    results = [runner.step({"a": len(PROMPT)})["a"]]
    tokens = runner.sequences["a"].tokens
    for _ in range(24):
        tokens.append(int(results[-1][-1].argmax()))
        results.append(runner.step({"a": 1})["a"])
    with torch.inference_mode():
        expected = reference_llama(smollm2_path)(torch.tensor([tokens])).logits[0]
    torch.testing.assert_close(torch.cat(results), expected, atol=1e-3, rtol=1e-3)
    assert expected.argmax(-1)[len(PROMPT) - 1 : -1].tolist() == tokens[len(PROMPT) :]


def test_smollm2_in_float16_keeps_the_distribution(smollm2_path: Path, paged_runner: Any) -> None:
    exact, narrow = (paged_runner(smollm2_path, dtype, block_size=16) for dtype in ("float32", "auto"))
    for runner in (exact, narrow):
        runner.add("a", PROMPT)
    expected = exact.step({"a": len(PROMPT)})["a"].log_softmax(-1)
    got = narrow.step({"a": len(PROMPT)})["a"].log_softmax(-1)
    divergence = (expected.exp() * (expected - got)).sum(-1)
    assert divergence.max() < 1e-4


def test_smollm2_bytes_are_foretold(smollm2_path: Path) -> None:
    config = load_config(smollm2_path, "llm")
    foretold = weight_needs(smollm2_path, config, "auto", "cpu")
    assert load_model(smollm2_path, config, torch.device("cpu")).held == foretold


def test_minilm_hidden_states(minilm_path: Path, encode_batch: Any) -> None:
    loaded = load_model(minilm_path, load_config(minilm_path, "embedding"), torch.device("cpu"))
    assert "pooler.dense.weight" in loaded.ignored
    assert json.loads((minilm_path / "config.json").read_text())["num_hidden_layers"] == 6
    reference = BertModel.from_pretrained(minilm_path, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(1000, 30000, (n,), generator=generator).tolist() for n in (5, 128, 33, 1)]
    with torch.inference_mode():
        got = loaded.model.forward(encode_batch(texts)).split([len(text) for text in texts])
        for text, rows in zip(texts, got):
            expected = reference(torch.tensor([text])).last_hidden_state[0]
            torch.testing.assert_close(rows, expected, atol=1e-5, rtol=1e-5)
