"""From logits to tokens, each row by its own random numbers."""

import numpy as np
import torch

from onecard.kernels.dispatch import op
from onecard.kernels.gumbel import gumbel, step_keys


@op(triton="onecard.kernels.triton.sampling:launch")
def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seeds: torch.Tensor,
    steps: torch.Tensor,
) -> torch.Tensor:
    """Choose one token a row: logits `[B, V]` float32 -> `[B]` int64. Logits are not written to.

    temperature `[B]` float32, 0: argmax. Otherwise logits / temperature are cut by top_k `[B]` int32 (0:
    off), then by top_p `[B]` of what is left (the fewest tokens whose probabilities reach top_p; the
    likeliest always stays), then by min_p `[B]` (at least min_p times the likeliest). Tokens equal to the
    last one kept are kept too. The token is the kept one with the largest logits / temperature + Gumbel noise
    (Gumbel 1954; the "Gumbel-max trick": its probability is softmax's), the noise being a function of
    (seeds[i], steps[i], token), both `[B]` int64, and of nothing else. So a row's token depends on nothing
    else in the batch, and logits that are off by e change it only where the two largest sums are within 2 e
    (or where e moves a token over a threshold). Rows of NaN or infinities give some token of the vocabulary.
    """
    tokens = logits.argmax(-1)
    rows = (temperature > 0).nonzero().squeeze(1)
    if rows.numel() > 0:
        scaled = _scale(logits[rows], tokens[rows], temperature[rows])
        ranked = scaled.sort(dim=-1, descending=True).values
        least = torch.maximum(min_p[rows].unsqueeze(1).log(), _cut(ranked, top_k[rows], top_p[rows]))
        vocab = torch.arange(logits.shape[-1], device=logits.device).unsqueeze(0)
        tokens[rows] = _race(scaled, vocab, least, step_keys(seeds[rows], steps[rows]))
    return tokens


@sample.cpu
def _(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seeds: torch.Tensor,
    steps: torch.Tensor,
) -> torch.Tensor:
    tokens = logits.argmax(-1)  # max(-1) with its indices takes thirty times as long on a CPU
    rows = (temperature > 0).nonzero().flatten().tolist()
    keys = step_keys(seeds, steps) if rows else seeds
    vocab = torch.arange(logits.shape[-1], dtype=torch.int32).unsqueeze(0)
    for row in rows:  # one after another: what a row needs stays in the cache
        one, candidates = slice(row, row + 1), vocab
        scores = _scale(logits[one], tokens[one], temperature[one])
        least = min_p[one].unsqueeze(1).log()
        if top_k[row] > 0 or top_p[row] < 1:
            ranked = np.sort(scores.numpy(), axis=-1)  # 0.1 ms of 49,152; torch's sort takes 1.5 or more
            least = torch.maximum(least, _cut(torch.from_numpy(ranked).flip(-1), top_k[one], top_p[one]))
        if least > float("-inf"):
            candidates = (~(scores < least)).nonzero()[:, 1].unsqueeze(0)
            scores = scores.gather(1, candidates)
        tokens[one] = _race(scores, candidates, least, keys[one])
    return tokens


def _scale(logits: torch.Tensor, likeliest: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """Rows `[N, V]` by their temperature, the largest logit 0."""
    top = logits.gather(1, likeliest.unsqueeze(1))
    return (logits - top).div_(temperature.unsqueeze(1))


def _race(
    scaled: torch.Tensor, candidates: torch.Tensor, least: torch.Tensor, keys: torch.Tensor
) -> torch.Tensor:
    """The winner `[N]` among candidates `[N, C]` or `[1, C]` whose scaled logits reach least `[N, 1]`."""
    noisy = gumbel(keys, candidates).add_(scaled)
    if (least > float("-inf")).any():
        noisy.masked_fill_(scaled < least, float("-inf"))
    winner = noisy.argmax(-1, keepdim=True)
    return candidates.expand(len(keys), -1).gather(1, winner).squeeze(1).long()


def _cut(ranked: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """The least logit that rows `[N, V]` in falling order keep after top-k and top-p, `[N, 1]`."""
    vocab = ranked.shape[-1]
    last = torch.where(top_k > 0, top_k, vocab).clamp_(max=vocab).long().unsqueeze(1)
    least = torch.where(last < vocab, ranked.gather(1, last - 1), float("-inf"))
    if (top_p >= 1).all():
        return least
    running = ranked.exp().masked_fill_(ranked < least, 0.0).cumsum(-1, dtype=torch.float64)
    rank = torch.searchsorted(running, top_p.unsqueeze(1).double() * running[:, -1:])
    bound = torch.where(top_p.unsqueeze(1) < 1, ranked.gather(1, rank.clamp_(max=vocab - 1)), least)
    return torch.maximum(bound, least)
