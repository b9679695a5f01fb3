"""What engines report, kept for a look."""

from dataclasses import dataclass, field

from onecard.engines.api import RequestStats, StepStats


@dataclass
class RecordingStats:
    """A `StatsSink` that keeps everything."""

    steps: list[StepStats] = field(default_factory=list)
    requests: list[RequestStats] = field(default_factory=list)

    def record_step(self, stats: StepStats) -> None:
        self.steps.append(stats)

    def record_request(self, stats: RequestStats) -> None:
        self.requests.append(stats)
