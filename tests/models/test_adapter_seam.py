"""Every linear layer is told whose tokens it multiplies: an adapter can wrap any of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_bert import save_random as save_random_bert
from test_decoders import CASES, prompt, save_random
from transformers import BertForSequenceClassification

from onecard.engines.layers.linear import Linear
from onecard.engines.models.registry import load_config
from onecard.engines.weights.loader import load_model

PLAIN, ADAPTED = prompt(9, 0), prompt(13, 1)


def linears(model: torch.nn.Module) -> dict[str, Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Linear)}


def wrap(layer: Linear, seen: list[Any]) -> None:
    """Add a delta to the rows of the batch's second sequence, `[T, out]`."""
    plain = layer.forward

    def forward(x: torch.Tensor, batch: Any) -> torch.Tensor:
        seen.append((len(x), batch))
        out = plain(x, batch)
        starts = batch.paged.query_starts if hasattr(batch, "paged") else batch.cu_seqlens.tolist()
        rows = slice(1, None) if len(x) == len(starts) - 1 else slice(starts[1], None)
        out[rows] += torch.linspace(-0.5, 1, out.shape[1])
        return out

    layer.forward = forward


@pytest.mark.parametrize("case", ["llama", "llama-tied", "qwen3"])
def test_a_decoders_linears_get_the_batch(case: str, tmp_path: Path, paged_runner: Any) -> None:
    save_random(*CASES[case], tmp_path)

    def run(name: str | None) -> tuple[Any, list[Any]]:
        runner, seen = paged_runner(tmp_path, "float32"), []
        if name is not None:
            wrap(linears(runner.model)[name], seen)
        runner.add("a", PLAIN)
        runner.add("b", ADAPTED)
        batch = runner._pack(["a", "b"], {"a": len(PLAIN), "b": len(ADAPTED)})
        with torch.inference_mode():
            logits = runner.model.compute_logits(runner.model.forward(batch), batch)
        assert all(rows == len(PLAIN) + len(ADAPTED) and told is batch for rows, told in seen)
        return logits.split([len(PLAIN), len(ADAPTED)]), seen

    runner = paged_runner(tmp_path, "float32")
    names = linears(runner.model)
    assert len(names) == 2 * 4 + 1
    (a, b), _ = run(None)
    for name in names:
        (same, other), seen = run(name)
        assert len(seen) == 1
        torch.testing.assert_close(same, a)
        assert (other - b).abs().max() > 1e-2


def test_an_encoders_linears_get_the_batch(tmp_path: Path, encode_batch: Any) -> None:
    save_random_bert(BertForSequenceClassification, tmp_path)
    model = load_model(tmp_path, load_config(tmp_path, "reranker"), torch.device("cpu")).model
    batch = encode_batch([[token % 120 for token in text] for text in (PLAIN, ADAPTED)])

    @torch.inference_mode()
    def logits() -> torch.Tensor:
        return model.classify(model.forward(batch)[batch.cu_seqlens[:-1].long()], batch)

    plain, names = logits(), linears(model)
    assert len(names) == 2 * 4 + 2
    for name, layer in names.items():
        seen: list[Any] = []
        unwrapped = layer.forward
        wrap(layer, seen)
        got = logits()
        layer.forward = unwrapped
        rows = 2 if name.startswith("head.") else len(PLAIN) + len(ADAPTED)
        assert [(count, told is batch) for count, told in seen] == [(rows, True)]
        torch.testing.assert_close(got[0], plain[0])
        assert (got[1] - plain[1]).abs().max() > 1e-3
