"""Every operation, every implementation, against an independent formulation in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from oracles import (
    add_rms_norm_oracle,
    kv_store_oracle,
    layer_norm_oracle,
    paged_oracle,
    rms_norm_oracle,
    rotary_oracle,
    silu_and_mul_oracle,
    varlen_oracle,
)
from paged_cases import DEVICE, IMPLEMENTATIONS, Paged, build_paged
from sampling_oracle import sample_oracle

from onecard.kernels.activation import silu_and_mul
from onecard.kernels.dispatch import Op
from onecard.kernels.gather_inputs import gather_decode_inputs
from onecard.kernels.kv_store import kv_store
from onecard.kernels.layer_norm import layer_norm
from onecard.kernels.paged_attention import paged_attention
from onecard.kernels.rms_norm import add_rms_norm, rms_norm
from onecard.kernels.rotary import rotary
from onecard.kernels.rotary_kv_store import rotary_kv_store
from onecard.kernels.sampling import sample
from onecard.kernels.varlen_attention import varlen_attention

EPS = 1e-5
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def rand(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype)


def fused_qkv(tokens: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """q, k, v as a decoder gets them: views of one projection, rows strided."""
    qkv = rand(tokens, (heads + 2 * kv_heads) * dim, dtype=dtype)
    sizes = [heads * dim, kv_heads * dim, kv_heads * dim]
    return [part.unflatten(1, (-1, dim)) for part in qkv.split(sizes, dim=-1)]


@dataclass(frozen=True)
class Case:
    """`make(dtype)` builds the arguments, `oracle` gives what the operation should return (or have
    written)."""

    op: Op[..., Any]
    name: str
    make: Callable[[torch.dtype], tuple[Any, ...]]
    oracle: Callable[..., Any]
    written: tuple[int, ...] = ()
    """Which arguments the operation writes to; empty: it returns its result."""
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)

    def run(self, implementation: str, dtype: torch.dtype) -> None:
        torch.manual_seed(1)
        args = self.make(dtype)
        expected = self.oracle(*args)
        result = getattr(self.op, f"run_{implementation}")(*args)
        got = tuple(args[i] for i in self.written) or result
        for a, b in zip(as_tuple(got), as_tuple(expected), strict=True):
            tolerance = TOLERANCE[dtype]
            torch.testing.assert_close(a.double(), b.double(), atol=tolerance, rtol=tolerance, equal_nan=True)


def as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def rotary_case(dim: int, turned: int) -> Callable[[torch.dtype], tuple[Any, ...]]:
    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        q, k, _ = fused_qkv(5, 6, 2, dim, dtype)
        angles = torch.rand(9, turned // 2, device=DEVICE) * 6
        positions = torch.tensor([3, 0, 8, 8, 1], device=DEVICE)
        return q, k, torch.cat([angles.cos(), angles.sin()], dim=-1)[positions]

    return make


def apart_rotary(dtype: torch.dtype) -> tuple[Any, ...]:
    """q and k that are no neighbours."""
    q, k, cos_sin = rotary_case(16, 16)(dtype)
    return q.clone(), k.clone(), cos_sin


def kv_store_case(dtype: torch.dtype) -> tuple[Any, ...]:
    paged = build_paged([1], [4], 3, 20, dtype)
    _, k, v = fused_qkv(6, 3, 3, 20, dtype)
    slots = torch.tensor([7, -1, 0, 255, 18, -1], device=DEVICE)
    return k, v, paged.k_cache, paged.v_cache, slots


def rotary_kv_store_case(turned: int, apart: bool = False) -> Callable[[torch.dtype], tuple[Any, ...]]:
    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        paged = build_paged([1] * 5, [3, 0, 9, 4, 1], 2, 16, dtype)
        q, k, v = fused_qkv(5, 6, 2, 16, dtype)
        _, _, cos_sin = rotary_case(16, turned)(dtype)
        q = q.clone() if apart else q
        return q, k, v, cos_sin, paged.k_cache, paged.v_cache, paged.batch

    return make


def rotary_kv_store_oracle(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos_sin: torch.Tensor,
    *to: Any,
) -> tuple[torch.Tensor, ...]:
    q, k = rotary_oracle(q, k, cos_sin)
    return q, *kv_store_oracle(k.to(v.dtype), v, to[0], to[1], to[2].slot_mapping)


def varlen_case(dim: int, causal: bool, lengths: list[int]) -> Callable[[torch.dtype], tuple[Any, ...]]:
    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        q, k, v = fused_qkv(sum(lengths), 2, 2, dim, dtype)
        ends = torch.tensor([0, *lengths], device=DEVICE).cumsum(0).to(torch.int32)
        return q, k, v, ends, max(lengths), dim**-0.5, causal

    return make


def paged_case(
    queries: list[int],
    lengths: list[int],
    heads: int,
    kv_heads: int,
    dim: int,
    window: int = 0,
    causal: bool = True,
) -> tuple[Callable[[torch.dtype], tuple[Any, ...]], Callable[..., torch.Tensor]]:
    made: list[Paged] = []

    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        paged = build_paged(queries, lengths, kv_heads, dim, dtype)
        made.append(paged)
        q, _, _ = fused_qkv(sum(queries), heads, kv_heads, dim, dtype)
        return q, paged.k_cache, paged.v_cache, paged.batch, dim**-0.5, window, causal

    def oracle(q: torch.Tensor, *rest: Any) -> torch.Tensor:
        return paged_oracle(made[-1], q, dim**-0.5, window, causal)

    return make, oracle


def sample_case(dtype: torch.dtype) -> tuple[Any, ...]:
    rows = [  # temperature, top_k, top_p, min_p
        (0.0, 0, 1.0, 0.0), (0.0, 3, 0.5, 0.5), (1.0, 0, 1.0, 0.0), (0.7, 1, 1.0, 0.0), (0.7, 12, 1.0, 0.0),
        (1.3, 0, 0.6, 0.0), (1.0, 0, 1e-6, 0.0), (2.0, 0, 1.0, 0.2), (1.5, 40, 0.9, 0.0), (1.5, 40, 0.9,
        0.05), (1.0, 999, 0.999, 0.0), (1e-6, 0, 1.0, 0.0),
    ]  # fmt: skip
    logits = torch.randn(len(rows), 300, device=DEVICE) * 3
    logits[4] = logits[4].round()  # ties at the threshold
    logits[5, 100:200] = float("-inf")
    temperature, top_k, top_p, min_p = (torch.tensor(x, device=DEVICE) for x in zip(*rows, strict=True))
    steps = torch.arange(len(rows), device=DEVICE)
    return logits, temperature, top_k.int(), top_p, min_p, steps - 3, 7 * steps


def gather_case(dtype: torch.dtype) -> tuple[Any, ...]:
    def integers(values: list[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=DEVICE)

    tables = torch.arange(40, dtype=torch.int32, device=DEVICE).view(4, 10)
    row_ids, starts = integers([3, -1, 0], torch.int32), integers([9, 4, 0], torch.int32)
    written = [integers([5, 5, 5], torch.int64) for _ in range(3)]
    lengths, out = integers([5, 5, 5], torch.int32), torch.zeros_like(tables[:3])
    return row_ids, starts, integers([60, 61, 62, 63], torch.int64), tables, 4, *written, lengths, out


def gather_oracle(*args: Any) -> tuple[torch.Tensor, ...]:
    expected = [63, 0, 60], [9, 0, 0], [32 * 4 + 1, -1, 0], [10, 0, 1]
    return tuple(torch.tensor(values, device=DEVICE) for values in expected)


ROTARY_KV_STORE_CASES = {
    "whole": rotary_kv_store_case(16),
    "partial": rotary_kv_store_case(12),
    "apart": rotary_kv_store_case(16, apart=True),
}
NORM_SHAPES = {"whole": (5, 64), "one": (1, 80), "odd": (3, 37)}
PAGED_CASES = {
    "decode": paged_case([1, 1, 1], [1, 37, 20], 4, 2, 16),
    "decode-gqa-odd-dim": paged_case([1, 1], [33, 6], 9, 3, 24),
    "decode-window": paged_case([1, 1, 1], [37, 5, 3], 4, 2, 16, window=5),
    "decode-equal-lengths": paged_case([1, 1, 1], [9, 9, 9], 3, 3, 16),
    "padded-rows": paged_case([1, 1, 1], [7, 0, 0], 4, 2, 16),
    "prefill": paged_case([23, 4], [23, 4], 4, 2, 16),
    "later-chunk": paged_case([5, 2], [29, 40], 6, 2, 16),
    "one-query-after-prefill": paged_case([3, 1], [3, 18], 4, 2, 16),
    "prefill-window": paged_case([21, 5], [21, 30], 4, 2, 16, window=4),
    "mixed": paged_case([1, 1, 6, 17], [19, 3, 6, 33], 9, 3, 40),
    "mixed-padded": paged_case([1, 1, 4], [5, 0, 9], 4, 1, 16, window=6),
    "all-keys-decode": paged_case([1, 1, 1], [37, 5, 20], 4, 2, 16, causal=False),
    "all-keys-more-queries-than-keys": paged_case([4, 19, 1], [33, 3, 18], 4, 2, 16, causal=False),
    "all-keys-mixed-odd-dim": paged_case([1, 1, 6, 17], [19, 3, 6, 33], 9, 3, 40, causal=False),
    "all-keys-padded": paged_case([1, 1, 4, 3], [5, 0, 9, 0], 3, 3, 16, causal=False),
}


def norm_cases() -> list[Case]:
    cases = []
    for name, (rows, dim) in NORM_SHAPES.items():

        def make(dtype: torch.dtype, rows: int = rows, dim: int = dim) -> tuple[Any, ...]:
            return rand(rows, dim, dtype=dtype), rand(dim, dtype=dtype), EPS

        def make_add(dtype: torch.dtype, rows: int = rows, dim: int = dim) -> tuple[Any, ...]:
            return *(rand(rows, dim, dtype=dtype) for _ in range(2)), rand(dim, dtype=dtype), EPS

        def make_layer(dtype: torch.dtype, rows: int = rows, dim: int = dim) -> tuple[Any, ...]:
            return rand(rows, dim, dtype=dtype), rand(dim, dtype=dtype), rand(dim, dtype=dtype), EPS

        def make_layer_add(dtype: torch.dtype, rows: int = rows, dim: int = dim) -> tuple[Any, ...]:
            return *make_layer(dtype, rows, dim), rand(rows, dim, dtype=dtype)

        cases += [
            Case(rms_norm, name, make, rms_norm_oracle),
            Case(add_rms_norm, name, make_add, add_rms_norm_oracle),
            Case(layer_norm, name, make_layer, layer_norm_oracle),
            Case(layer_norm, f"{name}-residual", make_layer_add, layer_norm_oracle),
        ]
    return cases


CASES = [
    *norm_cases(),
    Case(
        rms_norm,
        "strided-heads",
        lambda dtype: (fused_qkv(4, 3, 2, 20, dtype)[1], rand(20, dtype=dtype), EPS),
        rms_norm_oracle,
    ),
    Case(rotary, "whole", rotary_case(16, 16), rotary_oracle, written=(0, 1)),
    Case(rotary, "partial", rotary_case(20, 12), rotary_oracle, written=(0, 1)),
    Case(rotary, "apart", apart_rotary, rotary_oracle, written=(0, 1)),
    Case(silu_and_mul, "even", lambda dtype: (rand(3, 128, dtype=dtype),), silu_and_mul_oracle),
    Case(silu_and_mul, "odd", lambda dtype: (rand(2, 74, dtype=dtype),), silu_and_mul_oracle),
    Case(kv_store, "skips", kv_store_case, kv_store_oracle, written=(2, 3)),
    *(
        Case(rotary_kv_store, name, make, rotary_kv_store_oracle, written=(0, 4, 5))
        for name, make in ROTARY_KV_STORE_CASES.items()
    ),
    Case(varlen_attention, "ragged", varlen_case(16, False, [3, 19, 1]), varlen_oracle),
    Case(varlen_attention, "causal-odd-dim", varlen_case(24, True, [18, 2]), varlen_oracle),
    Case(varlen_attention, "equal-lengths", varlen_case(16, True, [1, 4, 4, 4, 0, 0, 2, 2]), varlen_oracle),
    Case(varlen_attention, "empty-sequence", varlen_case(16, False, [2, 0, 5]), varlen_oracle),
    *(Case(paged_attention, name, make, oracle) for name, (make, oracle) in PAGED_CASES.items()),
    Case(
        gather_decode_inputs,
        "padded",
        gather_case,
        gather_oracle,
        written=(5, 6, 7, 8),
        dtypes=(torch.float32,),
    ),
    Case(sample, "mixed", sample_case, sample_oracle, dtypes=(torch.float32,)),
]
ATTENTION = (varlen_attention, paged_attention)


def can_run(case: Case, implementation: str, dtype: torch.dtype) -> bool:
    """The interpreter multiplies bfloat16's bit patterns in `tl.dot`."""
    interpreted = DEVICE == "cpu" and implementation == "triton"
    return not (interpreted and dtype == torch.bfloat16 and case.op in ATTENTION)


RUNS = [
    pytest.param(
        case, implementation, dtype, id=f"{case.op.name}-{case.name}-{implementation}-{str(dtype)[6:]}"
    )
    for case in CASES
    for implementation in (
        *IMPLEMENTATIONS,
        *(["cuda"] if DEVICE == "cuda" and case.op.prefers_torch else []),
    )
    for dtype in case.dtypes
    if can_run(case, implementation, dtype)
]


@pytest.mark.parametrize(("case", "implementation", "dtype"), RUNS)
def test_op(case: Case, implementation: str, dtype: torch.dtype) -> None:
    case.run(implementation, dtype)


def test_rms_norm_is_transformers() -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    norm = LlamaRMSNorm(48, EPS)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(4, 48)
    torch.testing.assert_close(rms_norm(x, norm.weight.data, EPS), norm(x).data)
