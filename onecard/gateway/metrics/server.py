"""`/metrics`: what the engines report, under vLLM's names, plus what only one ledger of a card can tell.

One `Metrics` a server, with a registry of its own: several may live in one process (tests do that). All
methods but `render` are called on the event loop's thread. The children of every family are looked up once
per model, because `record_step` runs once a step and `labels()` costs more than the update itself."""

import logging

from prometheus_client import CollectorRegistry, generate_latest

from onecard.engines.api import FinishReason, ModelStatus, RequestStats, StepStats
from onecard.gateway.metrics.event_loop import event_loop_lag
from onecard.gateway.metrics.families import ENGINE_LABEL, EngineFamilies
from onecard.gateway.metrics.http import HttpMetrics
from onecard.gateway.metrics.node import LedgerSource, NodeCollector, NodeStatusSource

log = logging.getLogger(__name__)

FINISH_REASONS: tuple[FinishReason, ...] = ("stop", "length", "abort", "error")
TOKEN_SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")
"""vLLM's; the last is a cache outside the server, which this one doesn't have."""


class ModelMetrics(EngineFamilies):
    """The children of one model's series, made once, each under the name of its family."""

    def __init__(self, families: EngineFamilies, model: str) -> None:
        of = (model, ENGINE_LABEL)
        vars(self).update({name: family.labels(*of) for name, family in families.of_models()})
        self.waiting_for_capacity = families.waiting_by_reason.labels(*of, "capacity")
        self.waiting_deferred = families.waiting_by_reason.labels(*of, "deferred")
        self.deferred = 0
        self.computed, self.from_cache, _ = (
            families.prompt_tokens_by_source.labels(*of, source) for source in TOKEN_SOURCES
        )
        self.finished = {reason: families.success.labels(*of, reason) for reason in FINISH_REASONS}

    def step(self, stats: StepStats) -> None:
        self.running.set(stats.num_running)
        self.deferred = stats.num_deferred
        self._set_waiting(stats.num_waiting)
        self.kv_usage.set(stats.kv_usage or 0.0)
        if stats.prompt_tokens:
            self.prompt_tokens.inc(stats.prompt_tokens)
            self.computed.inc(stats.prompt_tokens - stats.cached_prompt_tokens)
            self.from_cache.inc(stats.cached_prompt_tokens)
        self.generation_tokens.inc(stats.generation_tokens)
        if stats.prefix_queries:
            self.prefix_queries.inc(stats.prefix_queries)
            self.prefix_hits.inc(stats.prefix_hits)
            self.prompt_tokens_cached.inc(stats.prefix_hits)
        if stats.preemptions:
            self.preemptions.inc(stats.preemptions)
        if tokens := stats.prompt_tokens + stats.generation_tokens:
            self.iteration.observe(tokens)
            self.host.observe(stats.host_seconds)
            self.device.observe(stats.device_seconds)
            self.gap.observe(stats.gap_seconds)
        for seconds in stats.first_token_seconds:
            self.ttft.observe(seconds)
        for seconds in stats.inter_token_seconds:
            self.itl.observe(seconds)

    def now(self, status: ModelStatus) -> None:
        """What is true at a scrape: requests may have left since the last step."""
        self.running.set(status.running)
        self._set_waiting(status.waiting)
        self.kv_usage.set(status.kv_bytes_used / status.ceiling_bytes if status.ceiling_bytes else 0.0)

    def gone(self) -> None:
        """It is served no more. What it has counted stays."""
        self.running.set(0)
        self._set_waiting(0)
        self.kv_usage.set(0.0)

    def _set_waiting(self, waiting: int) -> None:
        deferred = min(self.deferred, waiting)
        self.waiting.set(waiting)
        self.waiting_deferred.set(deferred)
        self.waiting_for_capacity.set(waiting - deferred)

    def request(self, stats: RequestStats) -> None:
        self.finished[stats.finish_reason].inc()
        self.e2e.observe(stats.e2e_seconds)
        self.request_prompt.observe(stats.prompt_tokens)
        self.request_generation.observe(stats.generation_tokens)
        self.request_max_generation.observe(stats.generation_tokens)
        self.request_computed.observe(max(stats.prompt_tokens - stats.cached_tokens, 0))
        self.request_preemptions.observe(stats.preemptions)
        self.params_n.observe(stats.n)
        if stats.max_tokens is not None:
            self.params_max_tokens.observe(stats.max_tokens)
        self._phases(stats)

    def _phases(self, stats: RequestStats) -> None:
        """Where its time went; a request that was aborted while waiting has no phases to speak of."""
        if stats.queue_seconds is not None:
            self.queue.observe(stats.queue_seconds)
        if stats.prefill_seconds is None:
            return
        decode = stats.decode_seconds or 0.0
        self.prefill.observe(stats.prefill_seconds)
        self.decode.observe(decode)
        self.inference.observe(stats.prefill_seconds + decode)
        if stats.generation_tokens > 1:
            self.tpot.observe(decode / (stats.generation_tokens - 1))


class Metrics:
    """All series of one server; a `StatsSink`. The series of `model_names` exist from the start, at 0."""

    def __init__(self, model_names: list[str] | tuple[str, ...]) -> None:
        self._registry = CollectorRegistry()
        self._engines = EngineFamilies(self._registry)
        self.http = HttpMetrics(self._registry).answered
        self._loop_lag = event_loop_lag(self._registry)
        self._node = NodeCollector()
        self._registry.register(self._node)
        self._models = {name: ModelMetrics(self._engines, name) for name in model_names}

    def bind(self, node_status: NodeStatusSource, ledger: LedgerSource | None = None) -> None:
        """Ask `node_status`, and the page ledger where there is one, for the memory gauges at each scrape."""
        self._node.source, self._node.ledger = node_status, ledger

    def record_step(self, stats: StepStats) -> None:
        self._model(stats.model).step(stats)

    def record_request(self, stats: RequestStats) -> None:
        self._model(stats.model).request(stats)

    def rejected(self, model_name: str, reason: str) -> None:
        """A request was refused before it ran (queue_full, draining, ...). `model_name` is a served one's."""
        self._engines.rejections.labels(model_name, ENGINE_LABEL, reason).inc()

    def kernel_compiled(self, name: str) -> None:
        """A kernel was compiled after the start, which held every model of the card up."""
        log.warning("the kernel %s was compiled while serving: requests had to wait for it", name)
        self._engines.compilations.inc()

    def event_loop_lag(self, seconds: float) -> None:
        """The event loop came so much later than it was asked to."""
        self._loop_lag.observe(seconds)

    def look(self) -> None:
        """See what the node says now, for the next `render`."""
        status = self._node.look()
        if status is None:
            return
        served = {model.name: model for model in status.models}
        for name, now in served.items():
            self._model(name).now(now)
        for name in self._models.keys() - served.keys():
            self._models[name].gone()

    def render(self) -> bytes:
        """The whole page in Prometheus' text format 0.0.4, with the node as `look` saw it. On any thread:
        it takes long for many models."""
        return generate_latest(self._registry)

    def _model(self, name: str) -> ModelMetrics:
        if name not in self._models:
            self._models[name] = ModelMetrics(self._engines, name)
        return self._models[name]
