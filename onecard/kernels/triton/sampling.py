"""Sampling without a sort: one row a program, thresholds by bisection, the token by the largest noisy logit.

A logit's distance below the row's largest, divided by the temperature, is a non-negative float, and such
floats order as their bits do: 31 halvings of an integer interval find the exact distance at which top-k's
count or top-p's sum is reached. The first halvings read the row (128K logits stay in a GPU's L2); as soon as
few tokens lie in the interval these are copied out, and the others read only them.
"""

import torch
import triton
import triton.language as tl

CHUNK = 4096
TILE = 2048
"""How many tokens the last halvings look at."""
INFINITY_BITS = 0x7F800000


@triton.jit
def _logits(logits, column, vocab):
    """A chunk of the row; -inf for NaN, and past the row's end."""
    values = tl.load(logits + column, mask=column < vocab, other=float("-inf"))
    return tl.where(values == values, values, float("-inf"))


@triton.jit
def _distance(logits, column, vocab, peak, temperature):
    """How far below the largest logit, in units of the temperature; +inf past the row's end."""
    distance = tl.abs((peak - _logits(logits, column, vocab)) / temperature)
    return tl.where(distance == distance, distance, float("inf"))


@triton.jit
def _kept(distance, top_k_bits, top_p_bits, farthest):
    bits = distance.to(tl.int32, bitcast=True)
    return (bits <= top_k_bits) & (bits <= top_p_bits) & (distance <= farthest)


@triton.jit
def _reached(
    logits,
    vocab,
    peak,
    temperature,
    limit_bits,
    more,
    wanted,
    scratch,
    BY_COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """The smallest distance (as bits) within which tokens not beyond limit_bits count, or weigh, `wanted`.

    It lies in (low, high]; within low are `fewer` tokens, which count or weigh `below`, and within high (at
    first limit_bits) at most `more`.
    """
    low, high, fewer = tl.full((), -1, tl.int32), limit_bits, tl.full((), 0, tl.int32)
    below = tl.full((), 0.0, tl.float32)
    while (high - low > 1) & (more - fewer > TILE):
        middle = low + (high - low) // 2
        count = tl.full((), 0, tl.int32)
        amount = tl.full((), 0.0, tl.float32)
        for start in range(0, vocab, BLOCK):
            column = start + tl.arange(0, BLOCK)
            distance = _distance(logits, column, vocab, peak, temperature)
            within = (distance.to(tl.int32, bitcast=True) <= middle) & (column < vocab)
            count += tl.sum(within.to(tl.int32), axis=0)
            if not BY_COUNT:
                amount += tl.sum(tl.where(within, tl.exp(-distance), 0.0), axis=0)
        if BY_COUNT:
            amount = count.to(tl.float32)
        enough = amount >= wanted
        high, more = tl.where(enough, middle, high), tl.where(enough, count, more)
        low, fewer = tl.where(enough, low, middle), tl.where(enough, fewer, count)
        below = tl.where(enough, below, amount)
    if high - low > 1:
        found = tl.full((), 0, tl.int32)
        for start in range(0, vocab, BLOCK):
            column = start + tl.arange(0, BLOCK)
            bits = _distance(logits, column, vocab, peak, temperature).to(tl.int32, bitcast=True)
            between = (bits > low) & (bits <= high) & (column < vocab)
            place = found + tl.cumsum(between.to(tl.int32), axis=0) - 1
            tl.store(scratch + place, bits, mask=between)
            found += tl.sum(between.to(tl.int32), axis=0)
        tl.debug_barrier()  # what other threads stored is read from here on
        place = tl.arange(0, TILE)
        bits = tl.load(scratch + place, mask=place < found, other=0)
        weight = tl.where(place < found, 1.0, 0.0)
        if not BY_COUNT:
            weight = tl.where(place < found, tl.exp(-bits.to(tl.float32, bitcast=True)), 0.0)
        while high - low > 1:
            middle = low + (high - low) // 2
            enough = below + tl.sum(tl.where(bits <= middle, weight, 0.0), axis=0) >= wanted
            high, low = tl.where(enough, middle, high), tl.where(enough, low, middle)
        tl.debug_barrier()  # the next search may store from here on
    return high


@triton.jit
def _splitmix64(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _step_key(seed, step):
    """See `gumbel.step_keys`."""
    seed, number = seed.to(tl.uint64, bitcast=True), step.to(tl.uint64, bitcast=True) + 1
    return _splitmix64(_splitmix64(seed + 0x9E3779B97F4A7C15) + number * 0x9E3779B97F4A7C15)


@triton.jit
def _gumbel(key, token):
    """See `gumbel.gumbel`; log1p(-v) is log(1 - v) corrected for what the difference lost (Kahan)."""
    x = token.to(tl.uint32, bitcast=True) * ((key >> 32).to(tl.uint32) | 1) + key.to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    x = (x ^ (x >> 16)) & 0x7FFFFFFF
    v = x.to(tl.float32) * (2.0**-31 * (1.0 - 2.0**-24)) + 2.0**-32
    rest = 1.0 - v
    lost = 1.0 - rest
    arrival = tl.where(lost > 0.0, -tl.log(rest) * (v / tl.where(lost > 0.0, lost, 1.0)), v)
    return -tl.log(arrival)


@triton.jit(do_not_specialize=["temperatures", "top_ks", "top_ps", "min_ps", "seeds", "steps"])
def _kernel(
    all_logits,
    temperatures,
    top_ks,
    top_ps,
    min_ps,
    seeds,
    steps,
    tokens,
    scratches,
    vocab,
    stride_row: tl.int64,
    UNBOUNDED: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits, scratch = all_logits + row * stride_row, scratches + row * TILE
    peak = tl.full((), float("-inf"), tl.float32)
    chosen = tl.full((), 0, tl.int32)
    for start in range(0, vocab, BLOCK):
        column = start + tl.arange(0, BLOCK)
        values = _logits(logits, column, vocab)
        best = tl.max(values, axis=0)
        chosen = tl.where(best > peak, start + tl.argmax(values, axis=0), chosen)
        peak = tl.maximum(peak, best)
    temperature = tl.load(temperatures + row)
    if temperature > 0:
        top_k, top_p = tl.load(top_ks + row), tl.load(top_ps + row)
        top_k_bits, candidates = tl.full((), UNBOUNDED, tl.int32), tl.full((), 0, tl.int32) + vocab
        if (top_k > 0) & (top_k < vocab):
            wanted = top_k.to(tl.float32)
            top_k_bits = _reached(
                logits, vocab, peak, temperature, top_k_bits, candidates, wanted, scratch, True, BLOCK, TILE
            )
        top_p_bits = top_k_bits
        min_p = tl.load(min_ps + row)
        farthest = tl.where(min_p > 0, -tl.log(tl.maximum(min_p, 1e-30)), float("inf"))
        if top_p < 1:
            total, candidates = tl.full((), 0.0, tl.float32), tl.full((), 0, tl.int32)
            for start in range(0, vocab, BLOCK):
                column = start + tl.arange(0, BLOCK)
                distance = _distance(logits, column, vocab, peak, temperature)
                within = (distance.to(tl.int32, bitcast=True) <= top_k_bits) & (column < vocab)
                candidates += tl.sum(within.to(tl.int32), axis=0)
                total += tl.sum(tl.where(within, tl.exp(-distance), 0.0), axis=0)
            wanted = top_p * total
            top_p_bits = _reached(
                logits, vocab, peak, temperature, top_k_bits, candidates, wanted, scratch, False, BLOCK, TILE
            )
        key = _step_key(tl.load(seeds + row), tl.load(steps + row))
        best = tl.full((), float("-inf"), tl.float32)
        for start in range(0, vocab, BLOCK):
            column = start + tl.arange(0, BLOCK)
            distance = _distance(logits, column, vocab, peak, temperature)
            kept = _kept(distance, top_k_bits, top_p_bits, farthest) & (column < vocab)
            noisy = tl.where(kept, _gumbel(key, column) - distance, float("-inf"))
            most = tl.max(noisy, axis=0)
            chosen = tl.where(most > best, start + tl.argmax(noisy, axis=0), chosen)
            best = tl.maximum(best, most)
    tl.store(tokens + row, chosen.to(tl.int64))


def launch(logits, temperature, top_k, top_p, min_p, seeds, steps):
    rows, vocab = logits.shape
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    scratch = torch.empty((rows, TILE), dtype=torch.int32, device=logits.device)
    if rows:
        _kernel[(rows,)](
            logits,
            temperature,
            top_k,
            top_p,
            min_p,
            seeds,
            steps,
            tokens,
            scratch,
            vocab,
            logits.stride(0),
            UNBOUNDED=INFINITY_BITS,
            BLOCK=min(CHUNK, triton.next_power_of_2(vocab)),
            TILE=TILE,
            num_warps=8,
        )
    return tokens
