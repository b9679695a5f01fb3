"""Where top-k and top-p cut a row, without a sort: thresholds by bisection over the few tokens in question.

A token's distance below the row's largest logit, in units of the temperature, is a non-negative float, and
such floats order as their bits do. So the distance at which a count or a sum is reached is found exactly by
halving an interval of integers. Halvings look at no more than the groups of neighbouring tokens whose nearest
one is near enough, and as soon as few tokens lie in the interval, at copies of those.
"""

import triton
import triton.language as tl


@triton.jit
def clean_logits(logits, column, vocab):
    """-inf for NaN, and past the row's end."""
    values = tl.load(logits + column, mask=column < vocab, other=float("-inf"))
    return tl.where(values == values, values, float("-inf"))


@triton.jit
def distance_below(values, peak, temperature):
    """How far below the peak, in units of the temperature; +inf for what is sick."""
    distance = tl.abs((peak - values) / temperature)
    return tl.where(distance == distance, distance, float("inf"))


@triton.jit
def candidates(
    logits, groups, start, count, vocab, peak, temperature, GROUP: tl.constexpr, BLOCK: tl.constexpr
):
    """Tokens of BLOCK / GROUP of the `count` listed groups, and their distances, +inf past the list's end."""
    lane = tl.arange(0, BLOCK)
    listed = start + lane // GROUP
    column = tl.load(groups + listed, mask=listed < count, other=0) * GROUP + lane % GROUP
    values = clean_logits(logits, tl.where(listed < count, column, vocab), vocab)
    return column, distance_below(values, peak, temperature)


@triton.jit
def threshold(bits, weights, wanted, limit):
    """The smallest distance (as bits) up to limit within which the weights come to `wanted`, else limit."""
    low, high = tl.full((), -1, tl.int32), limit
    while high - low > 1:
        middle = low + (high - low) // 2
        enough = tl.sum(tl.where(bits <= middle, weights, 0.0), axis=0) >= wanted
        high, low = tl.where(enough, middle, high), tl.where(enough, low, middle)
    return high


@triton.jit
def list_groups(nearest, limit, groups):
    """Write down which groups have a token within limit (bits); returns how many."""
    near = nearest <= limit
    place = tl.cumsum(near.to(tl.int32), axis=0) - 1
    tl.store(groups + place, tl.arange(0, nearest.shape[0]), mask=near)
    tl.debug_barrier()  # what other threads stored is read from here on
    return tl.sum(near.to(tl.int32), axis=0)


@triton.jit
def weigh(
    logits,
    groups,
    count,
    vocab,
    peak,
    temperature,
    within,
    BY_COUNT: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """How many tokens lie within a distance (as bits), and what they weigh; BY_COUNT: one each."""
    number, amount = tl.full((), 0, tl.int32), tl.full((), 0.0, tl.float32)
    for start in range(0, count, BLOCK // GROUP):
        _, distance = candidates(logits, groups, start, count, vocab, peak, temperature, GROUP, BLOCK)
        inside = distance.to(tl.int32, bitcast=True) <= within
        number += tl.sum(inside.to(tl.int32), axis=0)
        if not BY_COUNT:
            amount += tl.sum(tl.where(inside, tl.exp(-distance), 0.0), axis=0)
    if BY_COUNT:
        amount = number.to(tl.float32)
    return number, amount


@triton.jit
def reached(
    logits,
    groups,
    count,
    vocab,
    peak,
    temperature,
    limit,
    more,
    wanted,
    scratch,
    BY_COUNT: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """The smallest distance (as bits) up to limit within which tokens count, or weigh, `wanted`, else limit.

    It lies in (low, high]; within low are `fewer` tokens, which count or weigh `below`, and within high (at
    first limit) `more`. The first halvings are of the distance, then of its bits, so that they end.
    """
    low, high, fewer = tl.full((), -1, tl.int32), limit, tl.full((), 0, tl.int32)
    below, halvings = tl.full((), 0.0, tl.float32), tl.full((), 0, tl.int32)
    while (high - low > 1) & (more - fewer > TILE):
        middle = low + (high - low) // 2
        if halvings < 8:
            nearer = tl.maximum(low, 0).to(tl.float32, bitcast=True)
            half = (nearer + high.to(tl.float32, bitcast=True)) * 0.5
            middle = tl.minimum(tl.maximum(half.to(tl.int32, bitcast=True), low + 1), high - 1)
        halvings += 1
        number, amount = weigh(
            logits, groups, count, vocab, peak, temperature, middle, BY_COUNT, GROUP, BLOCK
        )
        enough = amount >= wanted
        high, more = tl.where(enough, middle, high), tl.where(enough, number, more)
        low, fewer = tl.where(enough, low, middle), tl.where(enough, fewer, number)
        below = tl.where(enough, below, amount)
    if high - low > 1:
        found = tl.full((), 0, tl.int32)
        for start in range(0, count, BLOCK // GROUP):
            _, distance = candidates(logits, groups, start, count, vocab, peak, temperature, GROUP, BLOCK)
            bits = distance.to(tl.int32, bitcast=True)
            between = (bits > low) & (bits <= high)
            place = found + tl.cumsum(between.to(tl.int32), axis=0) - 1
            tl.store(scratch + place, bits, mask=between)
            found += tl.sum(between.to(tl.int32), axis=0)
        tl.debug_barrier()  # what other threads stored is read from here on
        place = tl.arange(0, TILE)
        bits = tl.load(scratch + place, mask=place < found, other=0)
        weights = tl.where(place < found, 1.0, 0.0)
        if not BY_COUNT:
            weights = tl.where(place < found, tl.exp(-bits.to(tl.float32, bitcast=True)), 0.0)
        while high - low > 1:
            middle = low + (high - low) // 2
            enough = below + tl.sum(tl.where(bits <= middle, weights, 0.0), axis=0) >= wanted
            high, low = tl.where(enough, middle, high), tl.where(enough, low, middle)
        tl.debug_barrier()  # the next search may store from here on
    return high
