"""Who asks for what, and when: the same arrivals for the simulator and for the real engine."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random


@dataclass(frozen=True)
class Arrival:
    """One request, `time` seconds after the start.

    `lengths`: tokens of its prompt (one number) or of its texts; `output_tokens`: 0 for texts, which are
    encoded and not answered. `peak`: it arrives while its model has more than half of its highest rate.
    """

    time: float
    model: str
    lengths: tuple[int, ...]
    output_tokens: int
    peak: bool = False
    priority: int = 0


def ramp(peak_rate: int) -> list[int]:
    """Requests in each second: up from 1 to `peak_rate`, down to 1."""
    return [*range(1, peak_rate + 1), *range(peak_rate - 1, 0, -1)]


def intermittent_peaks(
    models: Sequence[str], peak_rate: int, prompt_tokens: int, output_tokens: int
) -> list[Arrival]:
    """kvcached's workload (its `benchmarks/bench_latency_benefit/run_benchmark.sh`, e8e6406).

    Every model's rate climbs by one request a second each second up to `peak_rate` and falls again to 1,
    where it stays; within a second requests are evenly spaced. The next model begins 2.25 ramps later, so the
    peaks follow each other. Model i of n asks `peak_rate**2 + (n - i) * delay` times. All requests are of one
    size (theirs: 256 prompt tokens; 128, 256 or 400 of output), and prefix caching is off.
    """
    delay = peak_rate // 4 + 2 * peak_rate
    arrivals = []
    for i, model in enumerate(models):
        count = peak_rate**2 + (len(models) - i) * delay
        rates = ramp(peak_rate)
        rates += [1] * (count - sum(rates))
        for second, rate in enumerate(rates):
            for k in range(rate):
                time = i * delay + second + k / rate
                arrivals.append(
                    Arrival(time, model, (prompt_tokens,), output_tokens, peak=rate > peak_rate / 2)
                )
    return sorted(arrivals, key=lambda arrival: arrival.time)


def alternating_peaks(
    models: Sequence[str],
    peak_rate: float,
    idle_rate: float,
    hold: float,
    seed: int,
    prompt_tokens: int,
    output_tokens: int,
) -> list[Arrival]:
    """Each model in turn is asked `peak_rate` times a second for `hold` seconds, others `idle_rate` times.

    Poisson arrivals of one size: peaks that last longer than an answer, so that memory has to follow them.
    """
    random = Random(seed)
    arrivals = []
    for i, model in enumerate(models):
        for turn in range(len(models)):
            peak = turn == i
            times = _poisson(random, peak_rate if peak else idle_rate, turn * hold, (turn + 1) * hold)
            arrivals += [Arrival(time, model, (prompt_tokens,), output_tokens, peak) for time in times]
    return sorted(arrivals, key=lambda arrival: arrival.time)


def faster(arrivals: Sequence[Arrival], factor: float) -> list[Arrival]:
    """The same requests at `factor` times the rate."""
    return [replace(arrival, time=arrival.time / factor) for arrival in arrivals]


@dataclass(frozen=True)
class Lengths:
    """Tokens of people's prompts and their answers: log-normal around these medians, `most` times them at
    most."""

    prompt: int
    output: int
    spread: float = 0.8
    most: int = 8

    def draw(self, random: Random) -> tuple[int, int]:
        return self._context(self.prompt, random), self._context(self.output, random)

    def _context(self, median: int, random: Random) -> int:
        return max(1, min(self.most * median, round(median * random.lognormvariate(0, self.spread))))


def chat(model: str, rate: float, seconds: float, seed: int, lengths: Lengths) -> list[Arrival]:
    """People who talk: Poisson arrivals."""
    random = Random(f"{seed} {model}")
    arrivals = []
    for time in _poisson(random, rate, 0.0, seconds):
        prompt, output = lengths.draw(random)
        arrivals.append(Arrival(time, model, (prompt,), output))
    return arrivals


def swelling_chat(model: str, rate: float, seconds: float, seed: int, lengths: Lengths) -> list[Arrival]:
    """A chat that is asked `rate` times a second, and five times as often in two swells (its peaks), each a
    sixth of all time."""
    swells = [
        replace(arrival, time=arrival.time + start, peak=True)
        for start in (seconds / 6, seconds / 2)
        for arrival in chat(model, 4 * rate, seconds / 6, seed + int(start), lengths)
    ]
    return merged(chat(model, rate, seconds, seed, lengths), swells)


def bursts(
    model: str, every: float, seconds: float, seed: int, requests: int, texts: int, text_tokens: int
) -> list[Arrival]:
    """Batch jobs: every `every` seconds `requests` requests at once, of `texts` texts each.

    Texts have half to one and a half times `text_tokens` tokens. An index being built is many requests of 32
    texts; reranking a search's results is one of a hundred.
    """
    random = Random(f"{seed} {model}")
    arrivals = []
    for k in range(int(seconds / every)):
        for _ in range(requests):
            lengths = tuple(random.randint(text_tokens // 2, text_tokens * 3 // 2) for _ in range(texts))
            arrivals.append(Arrival((k + 0.5) * every, model, lengths, 0))
    return arrivals


def merged(*workloads: Sequence[Arrival]) -> list[Arrival]:
    return sorted((a for workload in workloads for a in workload), key=lambda arrival: arrival.time)


def _poisson(random: Random, rate: float, start: float, end: float) -> Iterator[float]:
    time = start + random.expovariate(rate)
    while time < end:
        yield time
        time += random.expovariate(rate)
