"""What has happened so far: counts, latencies, and everything that should not have been."""

import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from harness.statistics import percentile

MOST_TOLD = 40


@dataclass
class Tally:
    """Filled on one event loop. `problems` holds the first few as sentences; `counts["problems"]` all."""

    counts: Counter[str] = field(default_factory=Counter)
    latencies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds by what was asked for."""
    problems: list[str] = field(default_factory=list)
    failed_at: list[tuple[float, float]] = field(default_factory=list)
    """When each request that was answered 500 began and ended, by the wall clock."""

    def problem(self, sentence: str) -> None:
        """Told at once on stderr, too: a run may be cut off."""
        print(f"{time.strftime('%H:%M:%S')} {sentence}", file=sys.stderr, flush=True)
        self.counts["problems"] += 1
        if len(self.problems) < MOST_TOLD:
            self.problems.append(sentence)

    def figures(self) -> dict[str, Any]:
        return {"counts": dict(sorted(self.counts.items())), "latencies": self._latencies()}

    def _latencies(self) -> dict[str, dict[str, float]]:
        return {
            name: {
                "count": len(seconds),
                "p50_s": round(percentile(seconds, 50), 3),
                "p99_s": round(percentile(seconds, 99), 3),
                "most_s": round(max(seconds), 3),
            }
            for name, seconds in sorted(self.latencies.items())
        }
