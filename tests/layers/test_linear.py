"""Linear layers: every method against F.linear, parts, biases, activations, and what `finalize` frees."""

from typing import Any

import psutil
import pytest
import torch
import torch.nn.functional as F

from onecard.engines.layers import linear_methods
from onecard.engines.layers.linear import Linear
from onecard.engines.layers.linear_methods import (
    ACTIVATIONS,
    CpuBfloat16Linear,
    FbgemmFloat16Linear,
    LinearMethod,
    OneDnnFloat32Linear,
    PlainLinear,
    linear_method,
)
from onecard.engines.layers.precision import Precision, precision_for

METHODS = {
    "plain": (PlainLinear(torch.float32), 1e-5),
    "onednn": (OneDnnFloat32Linear(), 1e-5),
    "fbgemm": (FbgemmFloat16Linear(), 5e-3),
    "bfloat16": (CpuBfloat16Linear(), 8e-2),
}


def layer_with(method: LinearMethod, **options: Any) -> tuple[Linear, torch.Tensor, torch.Tensor | None]:
    torch.manual_seed(0)
    layer = Linear(40, 24, Precision(torch.float32, torch.float32, method), **options)
    weight, bias = torch.randn(24, 40) / 6, torch.randn(24)
    assert layer.weight is not None
    layer.weight.data.copy_(weight)
    if layer.bias is not None:
        layer.bias.data.copy_(bias)
    return layer, weight, bias if layer.bias is not None else None


@pytest.mark.parametrize("rows", [1, 2, 17, 100])
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_methods_agree_with_f_linear(name: str, bias: bool, activation: str | None, rows: int) -> None:
    method, tolerance = METHODS[name]
    if not linear_methods.works(type(method)) if name != "plain" else False:
        pytest.skip(f"this build or processor has no {name}")
    layer, weight, expected_bias = layer_with(method, bias=bias, activation=activation)
    held = layer.finalize()
    x = torch.randn(rows, 40)
    with torch.inference_mode():
        got = layer.forward(x, None)
        expected = F.linear(x, weight, expected_bias)
    if activation is not None:
        expected = ACTIVATIONS[activation](expected)
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
    assert (layer.weight is None) == method.copies
    assert held == (method.nbytes(24, 40) if method.copies else 0)


def test_float16_keeps_what_it_cannot_hold_in_float32() -> None:
    layer, _, _ = layer_with(FbgemmFloat16Linear())
    assert layer.weight is not None
    layer.weight.data[3, 5] = 1e6
    weight = layer.weight.data.clone()
    assert layer.finalize() in (0, 4 * 24 * 40)
    x = torch.randn(3, 40)
    with torch.inference_mode():
        torch.testing.assert_close(layer.forward(x, None), F.linear(x, weight), rtol=1e-5, atol=1e-2)


def test_a_method_that_fails_or_lies_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails(OneDnnFloat32Linear):
        def bind(self, *_: Any) -> Any:
            raise RuntimeError("no such operator here")

    class Lies(OneDnnFloat32Linear):
        def bind(self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None) -> Any:
            return (lambda x, batch: F.linear(x, weight, bias) * 1.5), 0

    assert not linear_methods.works(Fails)
    assert not linear_methods.works(Lies)
    monkeypatch.setattr(linear_methods, "works", lambda _: False)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        method = linear_method("cpu", dtype)
        assert isinstance(method, PlainLinear)
        assert method.weight_dtype == torch.float32


def test_a_card_computes_in_what_it_stores() -> None:
    precision = precision_for("cuda", torch.bfloat16)
    assert isinstance(precision.linear, PlainLinear)
    assert precision.compute == precision.linear.weight_dtype == torch.bfloat16
    assert precision_for("cpu", torch.bfloat16).compute == torch.float32


def test_rows_are_padded_to_a_few_sizes_and_by_little() -> None:
    sizes = {rows: linear_methods.padded_rows(rows) for rows in range(8193)}
    assert all(rows <= size <= 1.125 * rows for rows, size in sizes.items())
    assert len(set(sizes.values())) <= 90


def test_ragged_batches_of_every_size_do_not_eat_memory() -> None:
    """oneDNN keeps what it compiles for each number of rows: 240 of them were 160 MB."""
    if not linear_methods.works(OneDnnFloat32Linear):
        pytest.skip("this build or processor has no onednn")
    apply, _ = OneDnnFloat32Linear().bind(torch.randn(88, 72), torch.randn(88), "gelu")
    apply(torch.randn(3, 72), None)
    process = psutil.Process()
    before = process.memory_info().rss
    for rows in range(200, 440):
        assert apply(torch.randn(rows, 72), None).shape == (rows, 88)
    assert process.memory_info().rss - before < 60 << 20
