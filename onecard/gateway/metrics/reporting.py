"""What the gateway reports of itself; `metrics.Metrics` is one that takes it."""

from typing import Protocol


class GatewayMetrics(Protocol):
    """What the gateway reports, and where `/metrics` gets its text from."""

    def render(self) -> bytes: ...

    def http(
        self,
        handler: str,
        method: str,
        status: int,
        seconds: float,
        request_bytes: int | None = None,
        response_bytes: int | None = None,
    ) -> None: ...

    def rejected(self, model_name: str, reason: str) -> None: ...
