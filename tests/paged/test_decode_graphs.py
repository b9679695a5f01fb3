"""The step that is captured, run as it is: its inputs are those of a step that is packed on the host."""

from typing import Any, cast

import pytest
import torch
from paged_bench import VOCABULARY, Bench, ReadingModel, lone_answer

from onecard.engines.layers.forward_batch import ForwardBatch
from onecard.engines.paged.decode_graphs import DecodeGraphs


class Replay:
    """Captures nothing: a replay is the work itself."""

    def capture(self, work: Any) -> Any:
        return work


class PlacedModel(ReadingModel):
    """Also reads where each token is, and whether a step came from a graph (one query a sequence, padded)."""

    def __init__(self, kv_cache: torch.Tensor):
        super().__init__(kv_cache)
        self.sizes: list[int] = []

    def __call__(self, batch: ForwardBatch) -> torch.Tensor:
        paged, (positions,) = batch.paged, batch.positions
        starts, lengths = paged.query_starts, paged.lengths
        for i, length in enumerate(lengths):
            queries = starts[i + 1] - starts[i]
            places = range(length - queries, length) if length else [0] * queries
            assert positions[starts[i] : starts[i + 1]].tolist() == list(places)
            assert length or paged.slot_mapping[starts[i]] == -1
        self.sizes.append(len(lengths))
        return super().__call__(batch)


@pytest.mark.parametrize("late", [False, True])
def test_graphs_answer_as_packed_steps_do(late: bool) -> None:
    bench = Bench(late)
    runner = bench.runner
    model = PlacedModel(runner.kv_cache)
    graphs = DecodeGraphs(runner.kv_cache, bench.rows, VOCABULARY, 64, [4, 8], cast(Any, Replay()))
    runner.graphs = graphs
    runner.use(cast(Any, model))
    for size in graphs.sizes:
        graphs.capture(size)
    prompts = [[3, 1, 4], [1, 5, 9, 2, 6], [7] * 11]
    requests = [bench.ask(prompt, max_tokens=9) for prompt in prompts]
    bench.run()
    for request, prompt in zip(requests, prompts, strict=True):
        (sequence,) = request.sequences
        assert sequence.token_ids[len(prompt) :] == lone_answer(prompt, 9)
    assert model.sizes.count(4) > 5
