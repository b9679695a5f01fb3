"""From logits to tokens, each row by its own random numbers."""

import torch

from onecard.kernels.dispatch import op

GOLDEN = -0x61C8864680B583EB
"""2^64 / golden ratio as a signed 64-bit integer: splitmix64's stride."""
MIX_1 = -0x40A7B892E31B1A47
MIX_2 = -0x6B2FB644ECCEEE15


CANDIDATES = 1024
"""How many tokens are ranked before a row is sorted."""


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift of int64, which torch shifts arithmetically."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _splitmix64(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shift_right(x, 30)) * MIX_1
    x = (x ^ _shift_right(x, 27)) * MIX_2
    return x ^ _shift_right(x, 31)


def uniforms(seeds: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """A random number for step `steps[i]` of the stream `seeds[i]`.

    seeds, steps `[B]` int64 -> `[B]` float32 in [0, 1). splitmix64 (Steele et al. 2014) used as a hash of
    (seed, step) in integer arithmetic: a request's numbers are the same on every device and whatever else is
    in the batch.
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

    temperature `[B]` float32, 0: argmax. Otherwise logits / temperature are cut by top_k `[B]` int32 (0:
    off), then by top_p `[B]` of what is left (the fewest tokens whose probabilities reach top_p; the
    likeliest always stays), then by min_p `[B]` (at least min_p times the likeliest). Tokens equal to the
    last one kept are kept too. The token is the first, in vocabulary order, where the running sum of the kept
    probabilities exceeds `uniform [B]` float32 in [0, 1) times their sum: a row's token depends on nothing
    else in the batch.
    """
    raise NotImplementedError


@sample.reference
def _(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    return _sample(logits, temperature, top_k, top_p, min_p, uniform, candidates=logits.shape[-1])


@sample.cpu
def _(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    return _sample(logits, temperature, top_k, top_p, min_p, uniform, candidates=CANDIDATES)


def _sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
    candidates: int,
) -> torch.Tensor:
    tokens = logits.argmax(-1)  # max(-1) with its indices takes thirty times as long on a CPU
    rows = (temperature > 0).nonzero().squeeze(1)
    if rows.numel() == 0:
        return tokens
    top_k, top_p = top_k[rows], top_p[rows]
    logits = logits[rows]
    top = logits.gather(1, tokens[rows].unsqueeze(1))
    scaled = (logits - top).div_(temperature[rows].unsqueeze(1))
    least = min_p[rows].unsqueeze(1).log()
    cut = ((top_k > 0) | (top_p < 1)).nonzero().squeeze(1)
    if cut.numel() > 0:
        bound = _cut(scaled[cut], top_k[cut].long(), top_p[cut], candidates)
        least[cut] = torch.maximum(least[cut], bound)
    dropped = scaled < least
    running = scaled.exp_().masked_fill_(dropped, 0.0).cumsum(-1, dtype=torch.float64)
    target = running[:, -1:] * uniform[rows].unsqueeze(1).double()
    chosen = torch.searchsorted(running, target, right=True).squeeze(1)
    tokens[rows] = chosen.clamp_(max=logits.shape[-1] - 1)  # a row of NaN finds nothing
    return tokens


def _cut(scaled: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, candidates: int) -> torch.Tensor:
    """The least logit that rows `[N, V]` keep after top-k and top-p, `[N, 1]`; each row's largest is 0.

    Looks among the `candidates` likeliest tokens first (0.2 ms a row of 49,152; a sort takes 1.5 ms) and
    sorts only the rows whose cut lies deeper.
    """
    vocab = scaled.shape[-1]
    ranked = scaled.topk(min(candidates, vocab), dim=-1).values
    width = ranked.shape[-1]
    last = torch.where(top_k > 0, top_k, vocab).clamp_(max=vocab).unsqueeze(1)
    least = torch.where(last < vocab, ranked.gather(1, last.clamp(max=width) - 1), float("-inf"))
    kept = scaled.exp().masked_fill_(scaled < least, 0.0).sum(-1, keepdim=True, dtype=torch.float64)
    weights = ranked.exp().masked_fill_(ranked < least, 0.0)
    running = weights.cumsum(-1, dtype=torch.float64)
    wanted = top_p.unsqueeze(1).double() * kept
    rank = (running < wanted).sum(-1, keepdim=True)
    bound = torch.where(top_p.unsqueeze(1) < 1, ranked.gather(1, rank.clamp(max=width - 1)), least)
    bound = torch.maximum(bound, least)
    deeper = ((last > width) & (last < vocab)) | ((rank >= width) & (top_p.unsqueeze(1) < 1))
    rows = deeper.squeeze(1).nonzero().squeeze(1)
    if width < vocab and rows.numel() > 0:
        bound[rows] = _cut(scaled[rows], top_k[rows], top_p[rows], vocab)
    return bound


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
