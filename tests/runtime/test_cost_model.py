"""The cost model beside truths that it doesn't know: recovery, outliers, change, silence, monotony."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onecard.engines.runtime.step_budget import CostModel, StepShape

Truth = tuple[float, float, float, float]
CPU: Truth = (8e-3, 7e-4, 4e-4, 2e-6)
GPU: Truth = (5e-3, 2e-5, 1e-5, 3e-8)

truths = st.tuples(st.floats(1e-3, 2e-2), st.floats(1e-5, 1e-3), st.floats(1e-5, 1e-3), st.floats(1e-8, 1e-6))
seeds = st.integers(0, 1 << 30)
shapes = st.builds(StepShape, st.integers(0, 8192), st.integers(0, 256), st.integers(0, 1_000_000))


def true_seconds(truth: Truth, shape: StepShape) -> float:
    a, b, c, d = truth
    return a + b * shape.tokens + c * shape.sequences + d * shape.context


def decode(random: Random) -> StepShape:
    sequences = random.randint(1, 64)
    return StepShape(sequences, sequences, sequences * random.randint(50, 2000))


def mixed(random: Random) -> StepShape:
    """A step as a scheduler makes them: decodes, and in every third step a chunk of a prompt."""
    shape = decode(random)
    if random.random() > 1 / 3:
        return shape
    chunk = random.randint(16, 2048)
    return StepShape(shape.tokens + chunk, shape.sequences + 1, shape.context + chunk)


def learn(
    model: CostModel, truth: Truth, steps: int, random: Random, noise: float = 0.05, kind=mixed
) -> None:
    for _ in range(steps):
        shape = kind(random)
        model.observe(shape, true_seconds(truth, shape) * random.gauss(1, noise))


def worst_error(model: CostModel, truth: Truth, random: Random, kind=mixed) -> float:
    errors = []
    for _ in range(200):
        shape = kind(random)
        seconds = model.seconds(shape)
        assert seconds is not None
        errors.append(abs(seconds / true_seconds(truth, shape) - 1))
    return max(errors)


@settings(deadline=None, max_examples=25)
@given(truths, seeds)
def test_a_few_hundred_noisy_steps_teach_it_all_shapes(truth: Truth, seed: int):
    model, random = CostModel(), Random(seed)
    learn(model, truth, 400, random)
    assert worst_error(model, truth, random) < 0.08


def test_it_finds_the_coefficients():
    model, random = CostModel(horizon=1000), Random(1)
    learn(model, CPU, 3000, random)
    assert model.coefficients == pytest.approx(CPU, rel=0.06)


def test_it_knows_nothing_before_it_has_seen_something():
    model = CostModel()
    assert model.seconds(StepShape(1, 1, 100)) is None
    assert model.tokens_within(1.0, StepShape(1, 1, 100)) is None
    assert model.coefficients is None


def test_the_first_prompts_give_a_first_idea():
    model, random = CostModel(), Random(2)
    for chunk in (200, 500, 50):
        shape = StepShape(chunk, 1, chunk)
        model.observe(shape, true_seconds(CPU, shape) * random.gauss(1, 0.05))
    seconds = model.seconds(StepShape(300, 1, 300))
    assert seconds == pytest.approx(true_seconds(CPU, StepShape(300, 1, 300)), rel=0.3)


@settings(deadline=None, max_examples=25)
@given(seeds, st.floats(5, 50))
def test_a_hiccup_moves_nothing(seed: int, factor: float):
    model, random = CostModel(), Random(seed)
    learn(model, GPU, 300, random)
    for _ in range(3):
        shape = mixed(random)
        model.observe(shape, true_seconds(GPU, shape) * factor)
        learn(model, GPU, 10, random)
    assert worst_error(model, GPU, random) < 0.12


def test_a_slow_first_step_is_forgotten_soon():
    """The first steps of a process compile, fill caches, wake the card up."""
    model, random = CostModel(), Random(3)
    shape = StepShape(300, 1, 300)
    model.observe(shape, 100 * true_seconds(GPU, shape))
    learn(model, GPU, 50, random)
    assert worst_error(model, GPU, random) < 0.2


@pytest.mark.parametrize("factor", [0.1, 0.6, 1.7, 10])
def test_it_follows_a_machine_that_changes(factor: float):
    model, random = CostModel(), Random(4)
    learn(model, CPU, 500, random)
    changed: Truth = tuple(factor * c for c in CPU)  # type: ignore[assignment]
    learn(model, changed, 800, random)
    assert worst_error(model, changed, random) < 0.1


def test_a_change_too_large_for_a_hiccup_is_believed_within_fifty_steps():
    model, random = CostModel(), Random(5)
    learn(model, CPU, 500, random)
    changed: Truth = tuple(5 * c for c in CPU)  # type: ignore[assignment]
    learn(model, changed, 50, random)
    assert worst_error(model, changed, random) < 0.25


def test_thousands_of_decodes_dont_wash_out_what_a_prompt_costs():
    model, random = CostModel(), Random(6)
    learn(model, CPU, 500, random)
    learn(model, CPU, 5000, random, kind=decode)
    assert worst_error(model, CPU, random) < 0.15


def test_prompts_after_nothing_but_decodes_are_learnt_at_once():
    """Before the first prompt nothing is known of prompts: the first ones aren't outliers."""
    model, random = CostModel(), Random(7)
    learn(model, CPU, 300, random, kind=decode)
    learn(model, CPU, 60, random)
    assert worst_error(model, CPU, random) < 0.15


def texts(random: Random) -> StepShape:
    """A step of an encoder: mostly many short texts, now and then a long one."""
    kind = random.random()
    if kind < 0.5:
        return StepShape.of_texts([random.randint(4, 60) for _ in range(random.randint(1, 64))])
    if kind < 0.9:
        return StepShape.of_texts([random.randint(50, 512) for _ in range(random.randint(1, 16))])
    return StepShape.of_texts([random.randint(1000, 8192)])


@pytest.mark.parametrize("truth", [(4e-3, 2e-4, 1e-4, 4e-8), (3e-3, 2e-6, 5e-6, 1e-10)], ids=["cpu", "gpu"])
@settings(deadline=None, max_examples=25)
@given(seed=seeds)
def test_a_mix_of_texts_teaches_what_long_ones_take(truth: Truth, seed: int):
    """Attention makes 8,192 tokens in one text dearer than in a hundred."""
    model, random = CostModel(), Random(seed)
    learn(model, truth, 400, random, kind=texts)
    assert worst_error(model, truth, random, kind=texts) < 0.15
    for length in (1500, 4000, 8192):
        alone = StepShape.of_texts([length])
        assert model.seconds(alone) == pytest.approx(true_seconds(truth, alone), rel=0.1)


@settings(deadline=None, max_examples=60)
@given(truths, seeds, shapes, shapes)
def test_more_work_never_takes_less_time(truth: Truth, seed: int, one: StepShape, other: StepShape):
    model, random = CostModel(), Random(seed)
    learn(model, truth, 30, random, noise=0.5)
    more = StepShape(one.tokens + other.tokens, one.sequences + other.sequences, one.context + other.context)
    assert all(coefficient >= 0 for coefficient in model.coefficients or (-1,))
    assert model.seconds(one) <= model.seconds(more)
    fits, fits_beside_more = model.tokens_within(0.05, one), model.tokens_within(0.05, more)
    if fits is not None and fits_beside_more is not None:
        assert 0 <= fits_beside_more <= fits <= model.tokens_within(0.1, one)


@settings(deadline=None, max_examples=25)
@given(truths, seeds, st.floats(0.02, 0.5))
def test_the_tokens_that_fit_a_quantum_fill_it(truth: Truth, seed: int, quantum: float):
    model, random = CostModel(), Random(seed)
    learn(model, truth, 200, random)
    decodes = StepShape(4, 4, 2000)
    tokens = model.tokens_within(quantum, decodes)
    assert tokens is not None
    filled = StepShape(4 + tokens, 5, 2000 + tokens)
    if tokens:
        assert model.seconds(filled) <= quantum * (1 + 1e-9)
        assert model.seconds(StepShape(5 + tokens, 5, 2001 + tokens)) > quantum * (1 - 1e-9)
    else:
        assert model.seconds(StepShape(5, 5, 2001)) > quantum * (1 - 1e-9)


def test_a_time_that_is_no_time_is_ignored():
    model = CostModel()
    for _ in range(10):
        model.observe(StepShape(1, 1, 10), 0.0)
        model.observe(StepShape(1, 1, 10), -1.0)
    assert model.seconds(StepShape(1, 1, 10)) is None
