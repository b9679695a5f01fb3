"""A process of its own: compile every operation's kernels for a Hopper card, which needn't be there.

Everything up to the machine code is checked: types, shapes of products, shared memory, and that registers
suffice.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from harness.hopper_driver import HopperDriver
from harness.machine_code import read_machine_code
from triton.runtime import driver

FEW_SPILLS = 8
"""Instructions: versions of the compiler differ by some, outside of loops."""


def attention_shapes(dtype: torch.dtype) -> dict[str, tuple[Callable[..., object], tuple[Any, ...]]]:
    """Heads of 128 shared by 2 and by 7, decodes beside a prompt; the encoders' heads of 64."""
    from paged_cases import build_paged

    from onecard.kernels.paged_attention import paged_attention
    from onecard.kernels.varlen_attention import varlen_attention

    shapes: dict[str, tuple[Callable[..., object], tuple[Any, ...]]] = {}
    for heads, kv_heads in ((16, 8), (28, 4)):
        paged = build_paged([1, 1, 20], [5, 18, 20], kv_heads, 128, dtype, block_size=16)
        q = torch.randn(22, heads, 128).to(dtype)
        for causal in (True, False):
            args = (q, paged.k_cache, paged.v_cache, paged.batch, 0.1, 0, causal)
            shapes[f"paged {heads}/{kv_heads} {causal}"] = (paged_attention.run_triton, args)
    q = torch.randn(20, 16, 64).to(dtype)
    ends = torch.tensor([0, 20], dtype=torch.int32)
    shapes["varlen 16"] = (varlen_attention.run_triton, (q, q, q, ends, 20, 0.1))
    return shapes


def main() -> None:
    hopper = HopperDriver()
    driver.set_active(hopper)
    from test_ops import CASES

    narrow = torch.bfloat16 if "--wide" not in sys.argv else torch.float32
    seen = set()
    for case in CASES:
        if case.op.name not in seen:
            case.op.run_triton(*case.make(narrow if narrow in case.dtypes else torch.float32))
        seen.add(case.op.name)
    for run, args in attention_shapes(narrow).values():
        run(*args)
    for name, code in hopper.utils.loaded:
        taken = read_machine_code(code)
        assert taken.spills <= FEW_SPILLS, f"{name} spills: {taken}"
    print(f"{len(hopper.utils.loaded)} kernels of {len(seen)} operations")


if __name__ == "__main__":
    main()
