"""Every counter, gauge and histogram that the engines feed, and how families are made that are read on demand.

Names, labels and buckets of the `vllm:` families are vLLM's (`vllm/v1/metrics/loggers.py`), so boards, alerts
and routers made for it read this server unchanged.
Times are seconds. prometheus-client appends `_total` to counters.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

MODEL_LABELS = ("model_name", "engine")
ENGINE_LABEL = "0"
"""vLLM numbers data-parallel replicas here; a model has one engine in this server."""
TOKENS_BUCKETS_UP_TO = 131_072

# fmt: off
TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
)
ITL_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)
LATENCY_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
)
ITERATION_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
STEP_BUCKETS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
)
N_BUCKETS = (1, 2, 5, 10, 20)
PREEMPTION_BUCKETS = (1, 2, 3, 4, 5, 10, 20)
# fmt: on


def one_two_five(maximum: int) -> tuple[int, ...]:
    """1, 2, 5, 10, 20, 50, ... up to and including `maximum` where it falls on the series."""
    series = (digit * 10**power for power in range(len(str(maximum))) for digit in (1, 2, 5))
    return tuple(value for value in series if value <= maximum)


Samples = Iterable[tuple[Sequence[str], float]]
"""The values of a family's labels, and the number."""


def gauge_of(name: str, doc: str, labels: Sequence[str], samples: Samples) -> Metric:
    return _filled(GaugeMetricFamily(name, doc, labels=labels), samples)


def counter_of(name: str, doc: str, labels: Sequence[str], samples: Samples) -> Metric:
    return _filled(CounterMetricFamily(name, doc, labels=labels), samples)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, samples: Samples) -> Metric:
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


class EngineFamilies:
    """The families with labels `model_name` and `engine`; `ModelMetrics` has a model's children."""

    def __init__(self, registry: CollectorRegistry) -> None:
        gauge = partial(Gauge, labelnames=MODEL_LABELS, registry=registry)

        def counter(name: str, doc: str, *labels: str) -> Counter:
            return Counter(name, doc, (*MODEL_LABELS, *labels), registry=registry)

        def histogram(name: str, doc: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(name, doc, MODEL_LABELS, registry=registry, buckets=tuple(buckets))

        tokens = one_two_five(TOKENS_BUCKETS_UP_TO)
        self.running = gauge("vllm:num_requests_running", "Requests in the batches that run now.")
        self.waiting = gauge("vllm:num_requests_waiting", "Requests that wait to be scheduled.")
        self.waiting_by_reason = gauge(
            "vllm:num_requests_waiting_by_reason",
            "Requests that wait: for memory or a place in the batch (capacity), or for something else first, "
            "such as a prefix that is being computed (deferred).",
            labelnames=(*MODEL_LABELS, "reason"),
        )
        self.kv_usage = gauge(
            "vllm:kv_cache_usage_perc", "KV cache in use by requests; 1 is all it may hold."
        )

        self.prompt_tokens = counter(
            "vllm:prompt_tokens", "Prompt tokens processed, computed or from the prefix cache."
        )
        self.prompt_tokens_by_source = counter(
            "vllm:prompt_tokens_by_source", "Prompt tokens by where their KV came from.", "source"
        )
        self.generation_tokens = counter("vllm:generation_tokens", "Tokens generated.")
        self.prompt_tokens_cached = counter(
            "vllm:prompt_tokens_cached", "Prompt tokens taken from the prefix cache."
        )
        self.prefix_queries = counter("vllm:prefix_cache_queries", "Tokens looked up in the prefix cache.")
        self.prefix_hits = counter("vllm:prefix_cache_hits", "Tokens found in the prefix cache.")
        self.preemptions = counter("vllm:num_preemptions", "Requests preempted to free memory.")
        self.success = counter("vllm:request_success", "Finished requests by reason.", "finished_reason")
        self.rejections = counter("vllm:admission_rejections", "Requests refused before they ran.", "reason")

        self.ttft = histogram("vllm:time_to_first_token_seconds", "Time to first token.", TTFT_BUCKETS)
        self.itl = histogram("vllm:inter_token_latency_seconds", "Time between tokens.", ITL_BUCKETS)
        self.tpot = histogram(
            "vllm:request_time_per_output_token_seconds",
            "Mean time per output token of a request.",
            ITL_BUCKETS,
        )
        self.e2e = histogram("vllm:e2e_request_latency_seconds", "End to end latency.", LATENCY_BUCKETS)
        self.queue = histogram("vllm:request_queue_time_seconds", "Time spent waiting.", LATENCY_BUCKETS)
        self.inference = histogram(
            "vllm:request_inference_time_seconds", "Time spent running.", LATENCY_BUCKETS
        )
        self.prefill = histogram(
            "vllm:request_prefill_time_seconds", "Time spent in prefill.", LATENCY_BUCKETS
        )
        self.decode = histogram("vllm:request_decode_time_seconds", "Time spent in decode.", LATENCY_BUCKETS)
        self.request_prompt = histogram("vllm:request_prompt_tokens", "Prompt tokens of a request.", tokens)
        self.request_generation = histogram("vllm:request_generation_tokens", "Tokens a request got.", tokens)
        self.request_max_generation = histogram(
            "vllm:request_max_num_generation_tokens", "Longest answer of a request, in tokens.", tokens
        )
        self.request_computed = histogram(
            "vllm:request_prefill_kv_computed_tokens",
            "Prompt tokens of a request that were not in the prefix cache.",
            tokens,
        )
        self.request_preemptions = histogram(
            "vllm:request_num_preemptions", "How often a request was preempted.", PREEMPTION_BUCKETS
        )
        self.params_n = histogram("vllm:request_params_n", "The `n` that requests ask for.", N_BUCKETS)
        self.params_max_tokens = histogram(
            "vllm:request_params_max_tokens", "The `max_tokens` that requests ask for.", tokens
        )
        self.iteration = histogram(
            "vllm:iteration_tokens_total", "Tokens computed in one step.", ITERATION_BUCKETS
        )

        self.host = histogram("onecard_step_host_seconds", "Python's time in one step.", STEP_BUCKETS)
        self.device = histogram("onecard_step_device_seconds", "The device's time in one step.", STEP_BUCKETS)
        self.gap = histogram(
            "onecard_step_gap_seconds", "Time the device stood idle between steps.", STEP_BUCKETS
        )
        # Without labels, so that it is there from the start: an alert on its increase sees the first one.
        self.compilations = Counter(
            "onecard_kernel_compilations",
            "Kernels compiled while serving; each holds every model up, and there should be none.",
            registry=registry,
        )

    def of_models(self) -> Iterator[tuple[str, Gauge | Counter | Histogram]]:
        """Those with no labels but a model's, by their names here."""
        further = {"waiting_by_reason", "prompt_tokens_by_source", "success", "rejections", "compilations"}
        return ((name, family) for name, family in vars(self).items() if name not in further)
