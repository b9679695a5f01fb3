import random
from types import SimpleNamespace

import numpy as np
import torch

from onecard.engines.paged.rows import RequestRows
from onecard.engines.runtime.staging import Staging, staged_bytes, staged_views

CPU = torch.device("cpu")


def sequence(rng: random.Random) -> SimpleNamespace:
    params = SimpleNamespace(temperature=rng.random(), top_k=rng.randrange(9), top_p=rng.random(), min_p=0.1)
    return SimpleNamespace(
        row=-1, seed=rng.getrandbits(62), request=SimpleNamespace(sampling=params), block_table=[]
    )


def test_the_cards_rows_follow_the_hosts_through_any_comings_and_goings():
    rng = random.Random(3)
    rows, staging = RequestRows(4, 20, CPU, mirrored=True), Staging(CPU)
    inside: list[SimpleNamespace] = []
    for _ in range(300):
        if len(inside) < 4 and rng.random() < 0.4:
            inside.append(sequence(rng))
            rows.enter(inside[-1])
        for s in inside:
            if len(s.block_table) < 19 and rng.random() < 0.7:
                s.block_table += [rng.randrange(1000) for _ in range(rng.randint(1, 20 - len(s.block_table)))]
            if rng.random() < 0.1:
                s.block_table = [block + 1 for block in s.block_table]
                rows.rewrite_blocks(s)
            rows.update_blocks(s)
        if inside and rng.random() < 0.3:
            rows.leave(inside.pop(rng.randrange(len(inside))))
        if rng.random() < 0.5:
            rows.send(staging)
            for s in inside:
                assert rows.device_tables[s.row, : len(s.block_table)].tolist() == s.block_table
                for name in ("temperature", "top_k", "top_p", "min_p", "seed"):
                    assert getattr(rows.device_sampling, name)[s.row] == getattr(rows, name)[s.row]
    assert {s.row for s in inside} <= {0, 1, 2, 3}


def test_what_nobody_sends_does_not_pile_up():
    """Rows that are the host's own, or a card's before steps that don't read them: forever."""
    rng = random.Random(4)
    for mirrored in (False, True):
        rows, staging = RequestRows(2, 400, CPU, mirrored), Staging(CPU)
        for _ in range(50):
            s = sequence(rng)
            rows.enter(s)
            for length in range(1, 20):
                s.block_table = list(range(length))
                rows.update_blocks(s)
                if mirrored:
                    rows.send(staging)
            rows.leave(s)
        assert (rows._entered, rows._new_blocks) == ([], [])


def test_staged_arrays_arrive_as_they_were():
    arrays = [np.arange(5, dtype=np.int64), np.ones((2, 3), np.float32), np.array([-1], np.int32)]
    buffer = torch.zeros(staged_bytes(arrays), dtype=torch.uint8)
    Staging(CPU).copy_into(buffer, arrays)
    for view, array in zip(staged_views(buffer, arrays), arrays, strict=True):
        assert view.numpy().dtype == array.dtype
        np.testing.assert_array_equal(view.numpy(), array)
