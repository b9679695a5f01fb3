"""What `/metrics` says of HTTP requests: names, labels and buckets of prometheus-fastapi-instrumentator."""

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary

# fmt: off
HTTP_BUCKETS = (0.1, 0.5, 1.0)
HTTP_HIGHR_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 7.5, 10.0,
    30.0, 60.0,
)
# fmt: on

Children = tuple[Counter, Histogram, Summary, Summary]
"""Those of one route, method and class of status, made once."""


class HttpMetrics:
    """The series of the gateway itself, by route and not by model."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "http_requests", "Requests by route.", ("handler", "method", "status"), registry=registry
        )
        self.duration = Histogram(
            "http_request_duration_seconds",
            "Time to answer, by route.",
            ("handler", "method"),
            registry=registry,
            buckets=HTTP_BUCKETS,
        )
        self.duration_highr = Histogram(
            "http_request_duration_highr_seconds",
            "Time to answer, all routes, in fine steps.",
            registry=registry,
            buckets=HTTP_HIGHR_BUCKETS,
        )
        self.request_size = Summary(
            "http_request_size_bytes", "Bytes of request bodies, by route.", ("handler",), registry=registry
        )
        self.response_size = Summary(
            "http_response_size_bytes", "Bytes of answer bodies, by route.", ("handler",), registry=registry
        )
        self._routes: dict[tuple[str, str, int], Children] = {}

    def answered(
        self,
        handler: str,
        method: str,
        status: int,
        seconds: float,
        request_bytes: int | None = None,
        response_bytes: int | None = None,
    ) -> None:
        """One answered HTTP request. `handler` is the route's pattern, never a path that a client made up.

        The sizes are those of the bodies; None where one isn't known.
        """
        key = (handler, method, status // 100)
        if (children := self._routes.get(key)) is None:
            children = self._routes[key] = self._children(*key)
        requests, duration, request_size, response_size = children
        requests.inc()
        duration.observe(seconds)
        self.duration_highr.observe(seconds)
        if request_bytes is not None:
            request_size.observe(request_bytes)
        if response_bytes is not None:
            response_size.observe(response_bytes)

    def _children(self, handler: str, method: str, hundreds: int) -> Children:
        return (
            self.requests.labels(handler, method, f"{hundreds}xx"),
            self.duration.labels(handler, method),
            self.request_size.labels(handler),
            self.response_size.labels(handler),
        )
