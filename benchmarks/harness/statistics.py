"""What a list of timings comes to."""

from collections.abc import Iterable, Sequence
from statistics import median

import numpy as np

Metrics = dict[str, float]


def percentile(values: Iterable[float], percent: float) -> float:
    """The percentile, between neighbours in proportion; NaN of nothing."""
    array = np.fromiter(values, dtype=float)
    return float(np.percentile(array, percent)) if array.size else float("nan")


def medians(repeats: Sequence[Metrics]) -> Metrics:
    """The median of every metric over its repeats."""
    return {key: median(repeat[key] for repeat in repeats) for key in repeats[0]}


def spread(values: Sequence[float]) -> float:
    """(largest - smallest) / median: how far repeats lie apart."""
    return (max(values) - min(values)) / median(values)


def rounded(metrics: Metrics, digits: int = 4) -> Metrics:
    """For people: `digits` significant digits."""
    return {key: float(f"{value:.{digits}g}") for key, value in metrics.items()}
