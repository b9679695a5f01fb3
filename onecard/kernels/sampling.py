"""From logits to tokens, each row by its own random numbers."""

import torch

from onecard.kernels.dispatch import op

GOLDEN = -0x61C8864680B583EB
"""2^64 / golden ratio as a signed 64-bit integer: splitmix64's stride."""
MIX_1 = -0x40A7B892E31B1A47
MIX_2 = -0x6B2FB644ECCEEE15


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift of int64, which torch shifts arithmetically."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _splitmix64(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shift_right(x, 30)) * MIX_1
    x = (x ^ _shift_right(x, 27)) * MIX_2
    return x ^ _shift_right(x, 31)


def uniforms(seeds: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """A random number for step `steps[i]` of the stream `seeds[i]`: seeds, steps `[B]` int64 -> `[B]` float32 in [0, 1).

    splitmix64 (Steele et al. 2014) used as a hash of (seed, step) in integer arithmetic, so a request's numbers are
    the same on every device and whatever else is in the batch.
    """
    mixed = _splitmix64(_splitmix64(seeds + GOLDEN) + (steps + 1) * GOLDEN)
    return _shift_right(mixed, 40).to(torch.float32) * 2.0**-24


@op
def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    """Choose one token a row: logits `[B, V]` float32 -> `[B]` int64. Logits are not written to.

    temperature `[B]` float32, 0: argmax. Otherwise logits / temperature are cut by top_k `[B]` int32 (0: off), then
    top_p `[B]` of what is left (the fewest tokens whose probabilities reach top_p; the likeliest always stays), then
    min_p `[B]` of what is left (at least min_p times the likeliest). Tokens equal to the last one kept are kept too.
    The token is the first, in vocabulary order, where the running sum of the kept probabilities exceeds
    `uniform [B]` float32 in [0, 1) times their sum: a row's token depends on nothing else in the batch.
    """
    raise NotImplementedError


def _cut(scaled: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """The least kept logit of each row `[N, V]` after top-k and top-p, as `[N, 1]`; needs one sort."""
    ranked = scaled.sort(dim=-1, descending=True).values
    vocab = ranked.shape[-1]
    last = torch.where(top_k > 0, top_k, vocab).clamp(max=vocab).long().unsqueeze(1) - 1
    least = ranked.gather(1, last)
    probs = ranked.masked_fill(ranked < least, float("-inf")).softmax(-1)
    before = probs.cumsum(-1) - probs
    reached = (before < top_p.unsqueeze(1)).sum(-1, keepdim=True).clamp(min=1) - 1
    return torch.where(top_p.unsqueeze(1) < 1, torch.maximum(least, ranked.gather(1, reached)), least)


@sample.reference
def _(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    tokens = logits.argmax(-1)
    rows = (temperature > 0).nonzero().squeeze(1)
    if rows.numel() == 0:
        return tokens
    scaled = logits[rows] / temperature[rows].unsqueeze(1)
    top = scaled.amax(-1, keepdim=True)
    least = top + min_p[rows].unsqueeze(1).log()
    cut = ((top_k[rows] > 0) | (top_p[rows] < 1)).nonzero().squeeze(1)
    if cut.numel() > 0:
        bound = _cut(scaled[cut], top_k[rows][cut], top_p[rows][cut])
        least[cut] = torch.maximum(least[cut], bound)
    weights = (scaled - top).exp_().masked_fill_(scaled < least, 0.0)
    running = weights.cumsum(-1, dtype=torch.float64)
    target = running[:, -1:] * uniform[rows].unsqueeze(1).double()
    tokens[rows] = torch.searchsorted(running, target, right=True).squeeze(1)
    return tokens


@sample.triton
def _(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    from onecard.kernels.triton.sampling import launch

    return launch(logits, temperature, top_k, top_p, min_p, uniform)
