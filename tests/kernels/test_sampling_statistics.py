"""Sampling as a random process: the right distribution, and every row on its own."""

import math

import pytest
import torch
from paged_cases import DEVICE, IMPLEMENTATIONS
from sampling_oracle import noise_bits, step_key

from onecard.kernels import gumbel
from onecard.kernels.gumbel import step_keys, token_bits
from onecard.kernels.sampling import sample


def knobs(
    rows: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[torch.Tensor, ...]:
    def full(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.full((rows,), value, dtype=dtype, device=DEVICE)

    return full(temperature), full(top_k, torch.int32), full(top_p), full(min_p)


def integers(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64, device=DEVICE)


def test_the_bits_are_those_of_plain_integers() -> None:
    seeds = [0, 1, -1, 2**63 - 1, -(2**63), 12345]
    steps = [0, 1, 2, 7, 100_000, 3]
    tokens = [0, 1, 2, 49_151, 151_935, 262_143]
    keys = step_keys(integers(*seeds), integers(*steps))
    assert [key % 2**64 for key in keys.tolist()] == [step_key(*of) for of in zip(seeds, steps, strict=True)]
    expected = [[noise_bits(*of, token) for token in tokens] for of in zip(seeds, steps, strict=True)]
    assert token_bits(keys, integers(*tokens).unsqueeze(0)).tolist() == expected
    assert token_bits(keys, integers(*tokens).expand(6, -1)).tolist() == expected


def noise_along(axis: str, n: int) -> torch.Tensor:
    """`[n, 16]` uniform numbers: n neighbours along the axis, for 16 values of another one."""
    count, few, zeros = torch.arange(n, device=DEVICE), torch.arange(16, device=DEVICE), integers(0).expand(n)
    if axis == "token":
        bits = token_bits(step_keys(zeros[:16], few), count.unsqueeze(0)).T
    else:
        seeds, steps = (count, zeros) if axis == "seed" else (zeros, count)
        bits = token_bits(step_keys(seeds, steps), few.unsqueeze(0))
    return (bits.double() + 0.5) / 2**31


@pytest.mark.parametrize("axis", ["token", "step", "seed"])
def test_noise_is_uniform_and_neighbours_know_nothing_of_each_other(axis: str) -> None:
    n = 1 << 15
    x = noise_along(axis, n)
    cells = torch.full((64,), n / 64, device=DEVICE)
    for column in range(16):
        counts = torch.histc(x[:, column].float(), bins=64, min=0, max=1)
        assert chi_square_is_plausible(counts, cells)
    for a, b in ((x[:-1], x[1:]), (x[:-2], x[2:]), (x[:, :-1], x[:, 1:])):
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 5 / math.sqrt(a.numel())
        pairs = (a * 16).long() * 16 + (b * 16).long()
        counts = torch.bincount(pairs.flatten(), minlength=256).double()
        assert chi_square_is_plausible(counts, torch.full_like(counts, a.numel() / 256))


def test_every_bit_is_even_and_on_its_own() -> None:
    """Also the low ones, which decide among the likeliest winners; tokens 2^i apart, too."""
    n = 1 << 16
    bits = token_bits(step_keys(integers(5), integers(9)), torch.arange(n, device=DEVICE).unsqueeze(0))[0]
    flags = (bits.unsqueeze(1) >> torch.arange(31, device=DEVICE) & 1).double() - 0.5
    assert (flags.mean(0).abs() < 2.5 / math.sqrt(n)).all()
    together = flags.T @ flags / n * 4 - torch.eye(31, device=DEVICE)
    assert together.abs().max() < 6 / math.sqrt(n)
    for power in range(12):
        assert ((flags[: -(1 << power)] * flags[1 << power :]).mean(0).abs() * 4 < 6 / math.sqrt(n)).all()


def test_gumbel_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mean and variance (Euler's constant and pi^2 / 6), and its ends: finite, at -log(-log)'s values."""
    keys = step_keys(torch.arange(64, device=DEVICE), torch.arange(64, device=DEVICE))
    noise = gumbel.gumbel(keys, torch.arange(4096, device=DEVICE).unsqueeze(0)).double()
    assert abs(noise.mean() - 0.57722) < 5 * 1.2825 / 512
    assert abs(noise.var() - math.pi**2 / 6) < 0.05
    ends = torch.tensor([[0, 1, 2**31 - 1]], dtype=torch.int32, device=DEVICE)
    monkeypatch.setattr(gumbel, "token_bits", lambda keys, tokens: ends)
    expected = [-math.log(2**-32), -math.log(3 * 2**-32), -math.log(-math.log(2**-24))]
    assert gumbel.gumbel(keys[:1], ends).tolist()[0] == pytest.approx(expected, rel=1e-6)


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
@pytest.mark.parametrize("axis", ["seed", "step"])
def test_distribution(temperature: float, top_k: int, top_p: float, min_p: float, axis: str) -> None:
    rows, vocab = 1 << 15, 40
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    probs = (logits / temperature).softmax(-1)
    ranked, order = probs.sort(descending=True)
    kept = torch.arange(vocab, device=DEVICE) < (top_k or vocab)
    before = (ranked * kept).cumsum(-1) / (ranked * kept).sum() - ranked / (ranked * kept).sum()
    kept &= (before < top_p) & (ranked >= min_p * ranked[0])
    expected = torch.zeros_like(probs)
    expected[order[kept]] = ranked[kept] / ranked[kept].sum()
    stream = [torch.arange(rows, device=DEVICE), integers(3).expand(rows)]
    run = sample if DEVICE == "cuda" else sample.run_reference
    tokens = run(
        logits.expand(rows, -1),
        *knobs(rows, temperature, top_k, top_p, min_p),
        *(stream if axis == "seed" else stream[::-1]),
    )
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
    args = (
        logits,
        temperature,
        top_k,
        top_p,
        min_p,
        torch.arange(6, device=DEVICE),
        torch.arange(6, device=DEVICE),
    )
    together = run(*args)
    alone = torch.cat([run(*(x[i : i + 1] for x in args)) for i in range(6)])
    assert torch.equal(together, alone)


@pytest.mark.skipif(DEVICE != "cpu", reason="the CPU path races only the tokens that are kept")
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 0.1), (0, 0.5), (0, 0.999), (2000, 1.0), (1500, 0.99), (50, 0.9), (256, 1.0)]
)
def test_a_large_vocabulary_is_cut_as_the_reference_does(top_k: int, top_p: float) -> None:
    logits = torch.randn(8, 4096)
    args = (logits, *knobs(8, 1.0, top_k, top_p), torch.arange(8), torch.arange(8))
    assert torch.equal(sample.run_cpu(*args), sample.run_reference(*args))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_tokens_equal_to_the_last_one_kept_are_kept(implementation: str) -> None:
    """More of them than any path looks at at once."""
    rows = torch.arange(6, device=DEVICE)
    logits = torch.zeros(6, 100, device=DEVICE)
    logits[:, 7] = 0.5
    temperature, top_k, top_p, min_p = knobs(6)
    cuts = torch.tensor([5, 0, 5] * 2, device=DEVICE).int(), torch.tensor([1.0, 0.3, 0.6] * 2, device=DEVICE)
    got = getattr(sample, f"run_{implementation}")(logits, temperature, *cuts, min_p, rows, rows)
    assert torch.equal(got, sample.run_reference(logits, temperature, top_k, top_p, min_p, rows, rows))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_sick_logits_stay_inside_the_vocabulary(implementation: str) -> None:
    logits = torch.full((3, 150), float("nan"), device=DEVICE)
    logits[1] = float("-inf")
    logits[2] = float("inf")
    logits = torch.cat([logits, torch.randn(1, 150, device=DEVICE)])
    logits[3, 70] = float("nan")
    rows = torch.arange(4, device=DEVICE)
    for cut in ((0, 1.0), (5, 0.9)):
        tokens = getattr(sample, f"run_{implementation}")(logits, *knobs(4, 1.0, *cut), rows, rows)
        assert ((tokens >= 0) & (tokens < 150)).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_numeric_noise_moves_a_token_only_where_two_nearly_tie(implementation: str) -> None:
    rows, noise = 40, 1e-3
    run = getattr(sample, f"run_{implementation}")
    of = torch.arange(rows, device=DEVICE), torch.arange(rows, device=DEVICE)
    logits = torch.randn(rows, 300, device=DEVICE)
    off = logits + (torch.rand_like(logits) * 2 - 1) * noise
    before, after = (run(x, *knobs(rows, 0.5), *of) for x in (logits, off))
    sums = logits / 0.5 + gumbel.gumbel(step_keys(*of), torch.arange(300, device=DEVICE).unsqueeze(0))
    first, second = sums.topk(2, dim=-1).values.T
    clear = first - second > 2 * noise / 0.5 + 1e-5
    assert clear.sum() > rows * 0.9
    assert torch.equal(before[clear], after[clear])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_likelier_token_takes_the_row_or_changes_nothing(implementation: str) -> None:
    """Unlike a running sum, where one token's weight moves the borders of all that follow."""
    run = getattr(sample, f"run_{implementation}")
    rows = torch.arange(64, device=DEVICE)
    logits = torch.randn(64, 200, device=DEVICE)
    before = run(logits, *knobs(64), rows, rows)
    logits[:, 17] += 5
    after = run(logits, *knobs(64), rows, rows)
    assert 0 < (after != before).sum() < 64
    assert (after[after != before] == 17).all()


@pytest.mark.parametrize("implementation", [name for name in IMPLEMENTATIONS if name != "reference"])
@pytest.mark.parametrize(
    ("spread", "temperature", "top_k", "top_p", "min_p"),
    [
        (3.0, 1.0, 20, 0.8, 0.0),  # a model's own defaults
        (3.0, 0.7, 0, 0.9, 0.0),
        (0.0, 1.0, 7, 0.5, 0.0),  # all alike: all are kept
        (0.01, 1.0, 300, 0.97, 0.0),  # nearly alike: more are kept than are looked at in one go
        (1.0, 1.0, 500, 1.0, 0.0),  # more than there are groups
        (0.5, 2.0, 0, 0.999, 0.3),
        (30.0, 1.0, 650, 0.9999, 0.0),  # most weigh nothing
        (3.0, 1e-6, 50, 0.9, 0.0),
        (1.0, 1.0, 0, 1.0, 0.0),
        (60.0, 1.0, 0, 1.0, 1e-20),
    ],
)
def test_cuts_are_the_references(
    implementation: str, spread: float, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    rows, vocab = 3, 701
    generator = torch.Generator().manual_seed(4)
    logits = (torch.randn(rows, vocab, generator=generator) * spread).to(DEVICE)
    of = torch.arange(rows, device=DEVICE), torch.arange(rows, device=DEVICE) * 3
    args = (logits, *knobs(rows, temperature, top_k, top_p, min_p), *of)
    assert torch.equal(getattr(sample, f"run_{implementation}")(*args), sample.run_reference(*args))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_first_of_equally_likely_tokens_is_the_greedy_one(implementation: str) -> None:
    """Across the borders of chunks, and where a logit is infinite."""
    logits = torch.zeros(4, 601, device=DEVICE)
    logits[0, [130, 260, 520]] = 2.0
    logits[1, [127, 128]] = 2.0
    logits[2, 599:] = float("inf")
    logits[3] = float("-inf")
    logits[3, 600] = -1e30
    rows = torch.arange(4, device=DEVICE)
    tokens = getattr(sample, f"run_{implementation}")(logits, *knobs(4, 0.0), rows, rows)
    assert tokens.tolist() == [130, 127, 599, 600]
