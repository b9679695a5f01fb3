"""A process of its own: launch every kernel as serving does, the compiler being played; say what compiled.

Prints the kernels compiled by a few first steps, then those by steps of many other sizes: there must be none.
"""

import itertools
import json
from types import SimpleNamespace
from typing import Any

import torch
import triton.compiler
from harness.hopper_driver import HopperDriver
from triton.runtime import driver

from onecard.kernels.activation import silu_and_mul
from onecard.kernels.compile_watch import watch_compilations
from onecard.kernels.gather_inputs import gather_decode_inputs
from onecard.kernels.kv_store import kv_store
from onecard.kernels.layer_norm import layer_norm
from onecard.kernels.paged_attention import PagedBatch, paged_attention
from onecard.kernels.rms_norm import add_rms_norm, rms_norm
from onecard.kernels.rotary import rotary
from onecard.kernels.rotary_kv_store import rotary_kv_store
from onecard.kernels.sampling import sample
from onecard.kernels.varlen_attention import varlen_attention

HEADS, KV_HEADS, DIM, BLOCK_SIZE, HIDDEN, VOCAB = 8, 2, 64, 16, 512, 5000
DTYPE = torch.bfloat16


def staged(count: int, dtype: torch.dtype, shift: int) -> torch.Tensor:
    """A view into a larger buffer, wherever its elements come to lie."""
    return torch.zeros(count + shift, dtype=dtype)[shift:]


def decoder_step(decodes: int, prompts: list[int], width: int, shift: int) -> None:
    sequences, tokens = decodes + len(prompts), decodes + sum(prompts)
    qkv = torch.zeros(tokens, (HEADS + 2 * KV_HEADS), DIM, dtype=DTYPE)
    q, k, v = qkv.split([HEADS, KV_HEADS, KV_HEADS], dim=1)
    arena = torch.zeros(4, 2, 2, BLOCK_SIZE, KV_HEADS, DIM, dtype=DTYPE)
    x, weight = torch.zeros(tokens, HIDDEN, dtype=DTYPE), torch.ones(HIDDEN, dtype=DTYPE)
    batch = PagedBatch(
        cu_seqlens_q=staged(sequences + 1, torch.int32, shift),
        seq_lens=staged(sequences, torch.int32, shift),
        block_tables=staged(sequences * width, torch.int32, shift).view(sequences, width),
        slot_mapping=staged(tokens, torch.int64, shift),
        max_seqlen_q=max([1, *prompts]),
        max_seqlen_k=width * BLOCK_SIZE,
        num_decodes=decodes,
    )
    rms_norm.run_triton(x, weight, 1e-5)
    rms_norm.run_triton(q, weight[:DIM], 1e-5)
    add_rms_norm.run_triton(x, x, weight, 1e-5)
    cos_sin = torch.zeros(tokens, DIM)
    rotary.run_triton(q, k, cos_sin)
    kv_store.run_triton(k, v, arena[:, 1, 0], arena[:, 1, 1], batch.slot_mapping)
    rotary_kv_store.run_triton(q, k, v, cos_sin, arena[:, 1, 0], arena[:, 1, 1], batch)
    for causal in (True, False):
        paged_attention.run_triton(q, arena[:, 1, 0], arena[:, 1, 1], batch, 0.125, causal=causal)
    silu_and_mul.run_triton(torch.zeros(tokens, 2 * HIDDEN, dtype=DTYPE))
    floats, integers = (staged(sequences, dtype, shift) for dtype in (torch.float32, torch.int32))
    numbers = staged(sequences, torch.int64, shift)
    sample.run_triton(torch.zeros(sequences, VOCAB), floats, integers, floats, floats, numbers, numbers)
    rows_tables = torch.zeros(300, 40, dtype=torch.int32)
    gather_decode_inputs.run_triton(
        integers,
        integers,
        torch.zeros(300, dtype=torch.int64),
        rows_tables,
        BLOCK_SIZE,
        *(torch.zeros(300, dtype=torch.int64)[:sequences] for _ in range(3)),
        torch.zeros(300, dtype=torch.int32)[:sequences],
        rows_tables.clone()[:sequences],
    )


def encoder_step(texts: int, length: int, shift: int) -> None:
    tokens = texts * length
    q, k, v = torch.zeros(tokens, 3 * HEADS, DIM, dtype=DTYPE).chunk(3, dim=1)
    varlen_attention.run_triton(q, k, v, staged(texts + 1, torch.int32, shift), length, 0.125)
    x, weight = torch.zeros(tokens, HIDDEN, dtype=DTYPE), torch.ones(HIDDEN, dtype=DTYPE)
    layer_norm.run_triton(x, weight, weight, 1e-5, x)


def played_compile(source: Any, **_: Any) -> Any:
    return SimpleNamespace(
        function=1, packed_metadata=(), launch_metadata=lambda *_: None, run=lambda *_: None, name=source.name
    )


def main() -> None:
    driver.set_active(HopperDriver())
    triton.compiler.compile = played_compile
    compiled: list[str] = []
    with watch_compilations(compiled.append):
        decoder_step(2, [20, 3], width=5, shift=0)
        encoder_step(3, 17, shift=0)
        first = list(compiled)
        sizes = itertools.product(
            (0, 1, 2, 15, 16, 17, 64, 256), ([], [1], [16], [5, 33]), (1, 16, 31), (0, 1)
        )
        for decodes, prompts, width, shift in sizes:
            if decodes or prompts:
                decoder_step(decodes, prompts, width, shift)
        for texts, length, shift in itertools.product((1, 16, 5), (1, 16, 130), (0, 1)):
            encoder_step(texts, length, shift)
    print(json.dumps({"first": first, "later": compiled[len(first) :]}))


if __name__ == "__main__":
    main()
