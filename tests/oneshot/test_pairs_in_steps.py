"""Pairs with types and texts without, in one step: each keeps its own, and the longest come first."""

import asyncio
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from onecard.engines.oneshot.job import Job


async def post(bench: Any, texts: list[list[int]], types: Any = None) -> Job:
    job = Job(
        texts=texts,
        type_ids=types,
        results=np.empty((len(texts), 4), dtype=np.float32),
        result=asyncio.get_running_loop().create_future(),
        num_missing=len(texts),
        arrived=0.0,
    )
    bench.core.add(job)
    return job


def spans(batch: Any) -> list[tuple[list[int], list[int]]]:
    """Each text of a batch, and its types."""
    bounds = batch.cu_seqlens.tolist()
    ids, types = batch.input_ids.tolist(), batch.token_type_ids.tolist()
    return [(ids[a:b], types[a:b]) for a, b in pairwise(bounds)]


@pytest.mark.parametrize("late", [False, True], ids=["cpu", "late"])
async def test_mixed(make_bench: Any, late: bool) -> None:
    bench = make_bench(late=late)
    pairs = await post(bench, [[5, 6], [7, 8, 9]], [[0, 1], [0, 0, 1]])
    plain = await post(bench, [[10], [11, 12, 13, 14]])
    more = await post(bench, [[15, 16]], [None])
    bench.loop.run()
    (batch,) = bench.model.batches
    assert spans(batch)[:5] == [
        ([11, 12, 13, 14], [0] * 4),
        ([7, 8, 9], [0, 0, 1]),
        ([5, 6], [0, 1]),
        ([15, 16], [0, 0]),
        ([10], [0]),
    ]
    for job, ids in ((pairs, [[5, 6], [7, 8, 9]]), (plain, [[10], [11, 12, 13, 14]]), (more, [[15, 16]])):
        assert job.result.done()
        np.testing.assert_allclose(job.results[:, 0], [np.mean(text) for text in ids])


async def test_filler_is_of_type_0(make_bench: Any) -> None:
    """On a CPU, where steps are filled up."""
    bench = make_bench(max_tokens=2048, max_seqs=300, max_model_len=16)
    await post(bench, [[5] * 10] * 103, [[1] * 10] * 103)
    bench.loop.run()
    (batch,) = bench.model.batches
    *texts, last = spans(batch)
    assert [types for _, types in texts[:103]] == [[1] * 10] * 103
    filler = [*texts[103:], last]
    assert filler
    assert all(not any(ids) and not any(types) and len(ids) <= 16 for ids, types in filler)


async def test_without_any_pair_no_types_go_to_the_device(make_bench: Any) -> None:
    bench = make_bench()
    await post(bench, [[5, 6]])
    await post(bench, [[7]], [None])
    bench.loop.run()
    assert [batch.token_type_ids for batch in bench.model.batches] == [None]
