"""An embedding model's own first steps: what they leave behind, and what becomes of those that fail."""

import gc
from typing import Any

import pytest

from onecard.engines.oneshot.practice import OneShotPractice
from onecard.engines.step.sizes import StepSize
from onecard.engines.step.warm_up import WarmUp


def warm_up_of(bench: Any) -> WarmUp:
    size = StepSize(max_num_seqs=8, max_num_batched_tokens=32)
    return WarmUp(bench.core, OneShotPractice(bench.core, size, vocab_size=50, max_model_len=16, width=4))


def test_all_its_steps_run_and_leave_nothing(bench):
    warm_up = warm_up_of(bench)
    assert list(warm_up.usual_steps())
    warm_up.largest_step()
    bench.core.rest()
    assert max(int(batch.cu_seqlens[-1]) for batch in bench.model.batches) >= 32
    assert not bench.core.has_unfinished()
    assert not bench.core.has_work()


def test_between_its_steps_the_loop_has_none_to_run(bench):
    left = []
    for _ in warm_up_of(bench).usual_steps():
        left.append(bench.core.num_waiting)
        assert not bench.core.has_work()
    assert max(left) > 0
    assert not bench.core.warming


def test_one_that_is_broken_off_leaves_nothing(bench):
    steps = warm_up_of(bench).usual_steps()
    while not bench.core.num_waiting:
        next(steps)
    steps.close()
    assert not bench.core.has_unfinished()
    assert not bench.core.warming


def test_a_step_without_memory_is_tried_again_smaller(bench, monkeypatch):
    model, shortages = bench.model, []

    def short(batch):
        if len(batch.input_ids) > 16:
            shortages.append(len(batch.input_ids))
            raise MemoryError
        return model(batch)

    monkeypatch.setattr(bench.core, "model", short)
    warm_up_of(bench).largest_step()
    assert shortages == [32]
    assert not bench.core.has_unfinished()


def test_one_that_fails_complains_to_its_caller_alone(bench, caplog):
    bench.model.poison = 0
    with pytest.raises(RuntimeError, match="poisoned") as failure:
        list(warm_up_of(bench).usual_steps())
    for deliver in bench.core.give_up(failure.value):
        deliver()
    del deliver, failure
    gc.collect()
    assert caplog.records == []
    assert not bench.core.has_unfinished()
