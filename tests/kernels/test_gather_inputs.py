"""Decode inputs from rows: what a sequence needs is written, and nothing else."""

import random

import pytest
import torch
from paged_cases import DEVICE

from onecard.kernels.gather_inputs import gather_decode_inputs
from onecard.kernels.triton import gather_inputs

UNTOUCHED = -77
IMPLEMENTATIONS = ("reference", "triton")


def integers(values: list[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=DEVICE)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("block_size", "width"), [(4, 24), (16, 6), (1, 96)])
def test_inputs_are_those_of_a_loop_over_the_rows(
    implementation: str, block_size: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather_inputs, "CHUNK", 8)
    draw = random.Random(block_size)
    row_ids = [5, 0, -1, 7, 2, -1, 1]
    starts = [0, block_size - 1, 50, block_size, 95, 3, draw.randrange(95)]
    last_token = torch.arange(100, 110, device=DEVICE)
    tables = torch.randint(0, 10**6, (10, 2 * width), dtype=torch.int32, device=DEVICE)[:, :width]
    wide = torch.full((len(row_ids), 3 * width), UNTOUCHED, dtype=torch.int32, device=DEVICE)
    outputs = [
        torch.full((9,), UNTOUCHED, dtype=torch.int64, device=DEVICE)[: len(row_ids)] for _ in range(3)
    ]
    seq_lens = torch.full_like(outputs[0], UNTOUCHED, dtype=torch.int32)
    getattr(gather_decode_inputs, f"run_{implementation}")(
        integers(row_ids, torch.int32),
        integers(starts, torch.int32),
        last_token,
        tables,
        block_size,
        *outputs,
        seq_lens,
        wide[:, :width],
    )
    input_ids, positions, slots = (output.tolist() for output in outputs)
    for i, (row, start) in enumerate(zip(row_ids, starts, strict=True)):
        got = input_ids[i], positions[i], slots[i], int(seq_lens[i])
        if row < 0:
            assert got == (0, 0, -1, 0)
            assert (wide[i, width:] == UNTOUCHED).all()
            continue
        block, used = int(tables[row, start // block_size]), start // block_size + 1
        assert got == (100 + row, start, block * block_size + start % block_size, start + 1)
        assert torch.equal(wide[i, :used], tables[row, :used])
        assert (wide[i, width:] == UNTOUCHED).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_slots_have_64_bits(implementation: str) -> None:
    row, start = integers([0], torch.int32), integers([17], torch.int32)
    tables = torch.full((1, 2), 2**31 - 1, dtype=torch.int32, device=DEVICE)
    ids, positions, slots = (torch.zeros(1, dtype=torch.int64, device=DEVICE) for _ in range(3))
    run = getattr(gather_decode_inputs, f"run_{implementation}")
    run(row, start, ids, tables, 16, ids.clone(), positions, slots, row.clone(), tables.clone())
    assert slots.item() == (2**31 - 1) * 16 + 1
