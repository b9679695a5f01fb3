"""Which implementation an operation runs, and that all of them take what the contract says."""

import inspect
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_ops import CASES

from onecard.kernels import torch_varlen
from onecard.kernels.dispatch import Op, op
from onecard.kernels.paged_attention import cpu, paged_attention
from onecard.kernels.rms_norm import rms_norm
from onecard.kernels.varlen_attention import varlen_attention

OPS = {case.op.name: case.op for case in CASES}


def arguments(function: Any) -> list[tuple[str, Any]]:
    return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("operation", OPS.values(), ids=OPS)
def test_launchers_take_the_contracts_arguments(operation: Op[..., Any]) -> None:
    assert operation.__doc__
    assert arguments(operation.run_triton) == arguments(operation.run_reference)
    assert arguments(operation.run_cpu) == arguments(operation.run_reference)


def test_lazily_named_implementations_are_those() -> None:
    assert paged_attention.run_cpu is cpu.attend
    assert arguments(torch_varlen.attend) == arguments(varlen_attention.run_reference)
    assert rms_norm.run_cpu is not rms_norm.run_reference


def on(device: str) -> Any:
    return SimpleNamespace(is_cpu=device == "cpu", is_cuda=device == "cuda")


@pytest.mark.parametrize(
    ("kernels", "expected"),
    [(None, ["cpu", "torch", "plain"]), ("reference", ["plain"] * 3), ("triton", ["cpu", "triton", "plain"])],
)
def test_the_device_of_the_first_argument_decides(
    kernels: str | None, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KERNELS", raising=False)
    if kernels is not None:
        monkeypatch.setenv("KERNELS", kernels)

    @op(triton=lambda x: "triton", cuda=lambda x: "torch")
    def which(x: Any) -> str:
        """Says what ran."""
        return "plain"

    @which.cpu
    def _(x: Any) -> str:
        return "cpu"

    assert [which(on(device)) for device in ("cpu", "cuda", "mps")] == expected
    assert which.prefers_torch


def test_an_operation_without_its_own_cpu_version_runs_the_reference() -> None:
    plain = op(triton="no.such.module:launch")(torch.neg)
    assert torch.equal(plain(torch.ones(2)), -torch.ones(2))
    with pytest.raises(ModuleNotFoundError):
        plain.run_triton(torch.ones(2))


def test_operations_run_on_a_cpu_without_triton() -> None:
    code = """
import sys
sys.modules["triton"] = None
import torch
from onecard.kernels import activation, gather_inputs, kv_store, layer_norm, paged_attention, rms_norm, rotary
from onecard.kernels import rotary_kv_store, sampling, varlen_attention
activation.silu_and_mul(torch.ones(2, 4))
rms_norm.rms_norm(torch.ones(2, 4), torch.ones(4), 1e-5)
assert not any(name.startswith("onecard.kernels.triton") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
