"""What became of the requests, measured alike whether they were simulated or served."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from harness.statistics import Metrics, percentile, rounded

from simulator.workloads import Arrival


@dataclass
class Served:
    """One request and the times, in seconds since the start, of its tokens (of texts: of the answer)."""

    arrival: Arrival
    times: list[float] = field(default_factory=list)
    finished: bool = False

    @property
    def first(self) -> float:
        """Seconds from arrival to first token."""
        return self.times[0] - self.arrival.time

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in pairwise(self.times)]


@dataclass(frozen=True)
class Objective:
    """A request is good when its first token (of texts: the answer) comes within `first` seconds and the
    tokens after it every `gap` seconds on average."""

    first: float
    gap: float

    def holds(self, served: Served) -> bool:
        if not served.finished or served.first > self.first:
            return False
        gaps = max(len(served.times) - 1, 1)
        return (served.times[-1] - served.times[0]) / gaps <= self.gap


def summary(served: Sequence[Served], objective: Objective, preempted_tokens: int) -> Metrics:
    """Over all requests; `_at_peak` of those that arrived in peaks, a second of peaks."""
    peaks = [s for s in served if s.arrival.peak]
    seconds = max(s.times[-1] for s in served if s.times)
    metrics = {
        "requests": len(served),
        "seconds": seconds,
        "tokens_per_s": sum(len(s.times) for s in served) / seconds,
        "goodput_per_s": sum(map(objective.holds, served)) / seconds,
        "good_share": sum(map(objective.holds, served)) / len(served),
        **latencies(served),
        "preempted_tokens": preempted_tokens,
    }
    if peaks:
        metrics["goodput_per_s_at_peak"] = sum(map(objective.holds, peaks)) / peak_seconds(peaks)
        metrics["good_share_at_peak"] = sum(map(objective.holds, peaks)) / len(peaks)
        metrics |= {f"{key}_at_peak": value for key, value in latencies(peaks).items()}
    return rounded(metrics)


def latencies(served: Iterable[Served]) -> Metrics:
    """Milliseconds to the first token and between tokens, of the requests that got any."""
    begun = [s for s in served if s.times]
    gaps = [gap for s in begun for gap in s.gaps]
    figures = {f"ttft_p{p}_ms": percentile((s.first for s in begun), p) * 1e3 for p in (50, 99)}
    if gaps:
        figures |= {f"itl_p{p}_ms": percentile(gaps, p) * 1e3 for p in (50, 99)}
    return figures


def peak_seconds(peaks: Sequence[Served]) -> float:
    """Between the first and last arrival of each model's peak, all models together."""
    models = {s.arrival.model for s in peaks}
    times = [[s.arrival.time for s in peaks if s.arrival.model == model] for model in models]
    return sum(max(t) - min(t) for t in times)


def of_models(served: Iterable[Served], *models: str) -> list[Served]:
    return [s for s in served if s.arrival.model in models]


def by_model(served: Sequence[Served]) -> dict[str, dict[str, float]]:
    """Each model's latencies."""
    models = sorted({s.arrival.model for s in served})
    figures = {model: latencies(of_models(served, model)) for model in models}
    return {model: {key: round(value, 1) for key, value in f.items()} for model, f in figures.items()}
