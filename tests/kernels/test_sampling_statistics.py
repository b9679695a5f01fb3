"""Sampling as a random process: the right distribution, and every row on its own."""

import math

import pytest
import torch
from paged_cases import DEVICE, IMPLEMENTATIONS

from onecard.kernels.sampling import CANDIDATES, sample, uniforms

MASK = (1 << 64) - 1


def knobs(
    rows: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[torch.Tensor, ...]:
    def full(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.full((rows,), value, dtype=dtype, device=DEVICE)

    return full(temperature), full(top_k, torch.int32), full(top_p), full(min_p)


def splitmix64(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def test_uniforms_are_splitmix64() -> None:
    seeds = [0, 1, -1, 2**63 - 1, -(2**63), 12345]
    steps = [0, 1, 2, 7, 100_000, 3]
    got = uniforms(torch.tensor(seeds), torch.tensor(steps)).tolist()
    golden = 0x9E3779B97F4A7C15
    for seed, step, value in zip(seeds, steps, got, strict=True):
        mixed = splitmix64((splitmix64((seed + golden) & MASK) + (step + 1) * golden) & MASK)
        assert value == (mixed >> 40) / 2**24


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    n = 1 << 16
    along_seeds = uniforms(torch.arange(n), torch.zeros(n, dtype=torch.int64))
    along_steps = uniforms(torch.full((n,), 7), torch.arange(n))
    for x in (along_seeds, along_steps):
        assert x.min() >= 0
        assert x.max() < 1
        counts = torch.histc(x, bins=64, min=0, max=1)
        assert chi_square_is_plausible(counts, torch.full((64,), n / 64))
        correlation = torch.corrcoef(torch.stack([x[:-1], x[1:]]))[0, 1]
        assert abs(correlation) < 5 / math.sqrt(n)


def chi_square_is_plausible(counts: torch.Tensor, expected: torch.Tensor) -> bool:
    """Within five standard deviations of what the degrees of freedom give (Wilson-Hilferty)."""
    freedom = int((expected > 0).sum()) - 1
    statistic = float(((counts - expected) ** 2 / expected)[expected > 0].sum())
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    return abs(z) < 5


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [(1.0, 0, 1.0, 0.0), (0.6, 0, 1.0, 0.0), (1.0, 10, 1.0, 0.0), (1.0, 0, 0.8, 0.0), (1.5, 20, 0.9, 0.05)],
)
def test_distribution(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    rows, vocab = 1 << 15, 40
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    probs = (logits / temperature).softmax(-1)
    ranked, order = probs.sort(descending=True)
    kept = torch.arange(vocab, device=DEVICE) < (top_k or vocab)
    before = (ranked * kept).cumsum(-1) / (ranked * kept).sum() - ranked / (ranked * kept).sum()
    kept &= (before < top_p) & (ranked >= min_p * ranked[0])
    expected = torch.zeros_like(probs)
    expected[order[kept]] = ranked[kept] / ranked[kept].sum()
    uniform = uniforms(torch.arange(rows, device=DEVICE), torch.zeros(rows, dtype=torch.int64, device=DEVICE))
    tokens = sample(logits.expand(rows, -1), *knobs(rows, temperature, top_k, top_p, min_p), uniform)
    counts = torch.bincount(tokens, minlength=vocab).float()
    assert not counts[expected == 0].any()
    assert chi_square_is_plausible(counts, expected * rows)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_row_depends_on_nothing_else(implementation: str) -> None:
    run = getattr(sample, f"run_{implementation}")
    logits = torch.randn(6, 200, device=DEVICE) * 2
    temperature = torch.tensor([1.0, 0.0, 0.8, 1.0, 2.0, 1.0], device=DEVICE)
    top_k = torch.tensor([0, 0, 5, 0, 50, 0], dtype=torch.int32, device=DEVICE)
    top_p = torch.tensor([1.0, 1.0, 1.0, 0.7, 0.9, 1.0], device=DEVICE)
    min_p = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.2], device=DEVICE)
    args = (logits, temperature, top_k, top_p, min_p, uniforms(torch.arange(6), torch.arange(6)).to(DEVICE))
    together = run(*args)
    alone = torch.cat([run(*(x[i : i + 1] for x in args)) for i in range(6)])
    assert torch.equal(together, alone)


@pytest.mark.skipif(DEVICE != "cpu", reason="candidates are the CPU path's")
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.5), (0, 0.999), (2000, 1.0), (1500, 0.99), (50, 0.9)])
def test_candidates_agree_with_a_sort(top_k: int, top_p: float) -> None:
    """Cuts that lie among the candidates, and cuts that lie deeper."""
    assert CANDIDATES < 1500
    logits = torch.randn(8, 4096)
    uniform = uniforms(torch.arange(8), torch.arange(8))
    args = (logits, *knobs(8, 1.0, top_k, top_p), uniform)
    assert torch.equal(sample.run_cpu(*args), sample.run_reference(*args))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_sick_logits_stay_inside_the_vocabulary(implementation: str) -> None:
    logits = torch.full((3, 150), float("nan"), device=DEVICE)
    logits[1] = float("-inf")
    logits[2] = float("inf")
    tokens = getattr(sample, f"run_{implementation}")(
        logits, *knobs(3, 1.0, 5, 0.9), torch.full((3,), 0.999, device=DEVICE)
    )
    assert ((tokens >= 0) & (tokens < 150)).all()
