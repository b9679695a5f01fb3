"""`/metrics`: names, labels, values, and vLLM's stock Grafana board replayed against the page."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from onecard.engines.api import (
    CacheConfig,
    CardLedger,
    CardStatus,
    ModelLedger,
    ModelStatus,
    NodeStatus,
    RequestStats,
    StepStats,
)
from onecard.gateway.metrics import Metrics
from onecard.gateway.metrics.families import one_two_five

BOARD = Path(__file__).parents[3] / "shared/contracts/vllm-grafana.json"


def samples(metrics: Metrics) -> list[Sample]:
    metrics.look()
    return [s for f in text_string_to_metric_families(metrics.render().decode()) for s in f.samples]


def value(metrics: Metrics, name: str, **labels: str) -> float:
    found = [s for s in samples(metrics) if s.name == name and labels.items() <= s.labels.items()]
    assert len(found) == 1, f"{name}{labels}: {found}"
    return found[0].value


def node_status() -> NodeStatus:
    card = CardStatus("card0", "cpu", 1000, 900, 640, 64, pages_free=4, pages_total=10)
    cache = CacheConfig(block_size=16, num_blocks=40, prefix_caching=True)
    model = ModelStatus("chat", "llm", "card0", "ready", 100, 225, 384, 200, 900, 2, 1, 7, cache)
    return NodeStatus("ready", (card,), (model,))


def step(model: str = "chat") -> StepStats:
    return StepStats(
        model,
        num_running=2,
        num_waiting=3,
        num_deferred=1,
        kv_usage=0.25,
        prompt_tokens=30,
        cached_prompt_tokens=12,
        generation_tokens=2,
        prefix_queries=46,
        prefix_hits=16,
        preemptions=1,
        host_seconds=0.0002,
        device_seconds=0.01,
        gap_seconds=0.0001,
        first_token_seconds=(0.03,),
        inter_token_seconds=(0.011, 0.012),
    )


def request() -> RequestStats:
    return RequestStats(
        "chat",
        "stop",
        prompt_tokens=46,
        generation_tokens=11,
        cached_tokens=16,
        preemptions=0,
        n=1,
        max_tokens=64,
        e2e_seconds=1.3,
        queue_seconds=0.1,
        prefill_seconds=0.2,
        decode_seconds=1.0,
    )


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics(["chat", "vectors"])
    metrics.bind(node_status)
    metrics.record_step(step())
    metrics.record_request(request())
    return metrics


def test_a_step_moves_gauges_counters_and_histograms(metrics: Metrics) -> None:
    of = {"model_name": "chat", "engine": "0"}
    assert value(metrics, "vllm:num_requests_running", **of) == 2
    assert value(metrics, "vllm:num_requests_waiting", **of) == 1
    assert value(metrics, "vllm:kv_cache_usage_perc", **of) == 0.25
    assert value(metrics, "vllm:prompt_tokens_total", **of) == 30
    sources = {"local_compute": 18, "local_cache_hit": 12, "external_kv_transfer": 0}
    for source, tokens in sources.items():
        assert value(metrics, "vllm:prompt_tokens_by_source_total", source=source, **of) == tokens
    assert value(metrics, "vllm:generation_tokens_total", **of) == 2
    assert value(metrics, "vllm:prefix_cache_queries_total", **of) == 46
    assert value(metrics, "vllm:prefix_cache_hits_total", **of) == 16
    assert value(metrics, "vllm:prompt_tokens_cached_total", **of) == 16
    assert value(metrics, "vllm:num_preemptions_total", **of) == 1
    assert value(metrics, "vllm:iteration_tokens_total_sum", **of) == 32
    assert value(metrics, "vllm:time_to_first_token_seconds_count", **of) == 1
    assert value(metrics, "vllm:inter_token_latency_seconds_count", **of) == 2
    assert value(metrics, "onecard_step_host_seconds_sum", **of) == pytest.approx(0.0002)
    assert value(metrics, "onecard_step_device_seconds_sum", **of) == pytest.approx(0.01)
    assert value(metrics, "onecard_step_gap_seconds_count", **of) == 1


def test_a_request_is_counted_by_reason_and_by_phase(metrics: Metrics) -> None:
    of = {"model_name": "chat"}
    waiting = replace(request(), queue_seconds=None, prefill_seconds=None, decode_seconds=None)
    metrics.record_request(replace(waiting, finish_reason="abort", max_tokens=None))
    assert value(metrics, "vllm:request_success_total", finished_reason="stop", **of) == 1
    assert value(metrics, "vllm:request_success_total", finished_reason="abort", **of) == 1
    assert value(metrics, "vllm:request_success_total", finished_reason="length", **of) == 0
    assert value(metrics, "vllm:e2e_request_latency_seconds_count", **of) == 2
    assert value(metrics, "vllm:request_queue_time_seconds_count", **of) == 1, (
        "the aborted one never left the queue"
    )
    assert value(metrics, "vllm:request_inference_time_seconds_sum", **of) == pytest.approx(1.2)
    assert value(metrics, "vllm:request_time_per_output_token_seconds_sum", **of) == pytest.approx(0.1)
    assert value(metrics, "vllm:request_params_max_tokens_count", **of) == 1, "None is no number to count"


def test_a_requests_computed_prompt_and_preemptions(metrics: Metrics) -> None:
    metrics.record_request(replace(request(), preemptions=3))
    metrics.record_request(replace(request(), cached_tokens=60))
    assert value(metrics, "vllm:request_prefill_kv_computed_tokens_sum", model_name="chat") == 60
    assert value(metrics, "vllm:request_prefill_kv_computed_tokens_count", model_name="chat") == 3
    assert value(metrics, "vllm:request_num_preemptions_sum", model_name="chat") == 3
    assert value(metrics, "vllm:request_num_preemptions_bucket", model_name="chat", le="2.0") == 2


def test_who_waits_is_told_by_reason(metrics: Metrics) -> None:
    def waiting() -> dict[str, float]:
        name = "vllm:num_requests_waiting_by_reason"
        return {
            reason: value(metrics, name, model_name="chat", reason=reason)
            for reason in ("capacity", "deferred")
        }

    def at_scrape(count: int) -> NodeStatus:
        return NodeStatus("ready", (), (replace(node_status().models[0], waiting=count),))

    metrics.bind(lambda: at_scrape(3))
    assert waiting() == {"capacity": 2, "deferred": 1}
    metrics.bind(lambda: at_scrape(0))
    assert waiting() == {"capacity": 0, "deferred": 0}


def test_one_token_has_no_time_per_output_token() -> None:
    metrics = Metrics(["chat"])
    metrics.record_request(replace(request(), generation_tokens=1, decode_seconds=0.0))
    assert value(metrics, "vllm:request_time_per_output_token_seconds_count", model_name="chat") == 0


def test_every_model_starts_at_zero_and_models_stay_apart(metrics: Metrics) -> None:
    assert value(metrics, "vllm:prompt_tokens_total", model_name="vectors") == 0
    metrics.record_step(step("vectors"))
    assert value(metrics, "vllm:prompt_tokens_total", model_name="vectors") == 30
    assert value(metrics, "vllm:prompt_tokens_total", model_name="chat") == 30


def test_memory_comes_from_the_node_at_scrape(metrics: Metrics) -> None:
    of = {"card": "card0", "model_name": "chat"}
    kinds = {"weights": 100, "kv_used": 225, "kv_owned": 384, "floor": 200, "ceiling": 900}
    for kind, nbytes in kinds.items():
        assert value(metrics, "onecard_memory_bytes", kind=kind, **of) == nbytes
    assert value(metrics, "onecard_pages", card="card0", model_name="", kind="free") == 4
    assert value(metrics, "onecard_pages", kind="owned", **of) == 6
    assert value(metrics, "onecard_card_bytes", card="card0", kind="arena") == 640
    assert value(metrics, "onecard_model_state", model_name="chat", state="ready") == 1
    assert value(metrics, "onecard_model_state", model_name="chat", state="failed") == 0


def ledger_of(*models: ModelLedger) -> list[CardLedger]:
    return [CardLedger("card0", 64, 20, 3, models, {"chat": 7}, {"memory": 2, "wake": 1})]


def model_ledger(name: str, state: str, home: int, active: int, cached: int, idle: int) -> ModelLedger:
    owned = active + cached + idle
    claimed = home if state in ("ready", "falling_asleep") else 0
    use = (owned, active, cached, idle)
    return ModelLedger(name, state, 0, home, claimed, *use, 2, 9, max(owned - 2, 0), 0, 100, 0)


def test_pages_come_from_the_ledger_where_there_is_one(metrics: Metrics) -> None:
    awake, asleep = model_ledger("chat", "ready", 4, 5, 6, 1), model_ledger("vectors", "asleep", 8, 0, 1, 0)
    metrics.bind(node_status, lambda: ledger_of(awake, asleep))
    pages = {"home": 4, "active": 5, "cached": 6, "idle": 1}
    for kind, count in pages.items():
        assert value(metrics, "onecard_pages", card="card0", model_name="chat", kind=kind) == count
    assert value(metrics, "onecard_pages", model_name="vectors", kind="home") == 0, "its home is lent"
    assert sum(s.value for s in samples(metrics) if s.name == "onecard_pages") == 20, "all of the arena"
    assert value(metrics, "onecard_page_recalls_total", card="card0", model_name="chat") == 7
    assert value(metrics, "onecard_page_recalls_total", card="card0", model_name="vectors") == 0
    for name, nbytes in {"chat": 10 * 64, "vectors": 0}.items():
        assert value(metrics, "onecard_borrowed_bytes", card="card0", model_name=name) == nbytes
    assert value(metrics, "onecard_preemptions_total", card="card0", cause="memory") == 2
    assert value(metrics, "onecard_preemptions_total", card="card0", cause="wake") == 1
    assert value(metrics, "onecard_preemptions_total", card="card0", cause="floor") == 0, (
        "there from the start"
    )


def test_a_home_counts_as_long_as_it_is_claimed(metrics: Metrics) -> None:
    falling = model_ledger("chat", "falling_asleep", 4, 5, 6, 1)
    metrics.bind(node_status, lambda: ledger_of(falling, replace(falling, name="vectors", claimed_pages=1)))
    homes = [s.value for s in samples(metrics) if s.labels.get("kind") == "home"]
    assert homes == [4, 1]


def test_a_kernel_compiled_while_serving_is_counted_and_named(
    metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    assert value(metrics, "onecard_kernel_compilations_total") == 0
    metrics.kernel_compiled("rms_norm")
    assert value(metrics, "onecard_kernel_compilations_total") == 1
    assert "rms_norm" in caplog.text


def test_running_and_waiting_are_those_of_the_scrape(metrics: Metrics) -> None:
    """The last request may have left without another step to report it (an abort, an embedding)."""
    metrics.record_step(StepStats(model="chat", num_running=1, num_waiting=5, kv_usage=0.9))
    status = ModelStatus("chat", "llm", "card0", "ready", 100, 64, 384, 200, 640, 0, 0, 7)
    metrics.bind(lambda: NodeStatus("ready", (), (status,)))
    metrics.look()
    of = {"model_name": "chat", "engine": "0"}
    assert value(metrics, "vllm:num_requests_running", **of) == 0
    assert value(metrics, "vllm:num_requests_waiting", **of) == 0
    assert value(metrics, "vllm:kv_cache_usage_perc", **of) == 0.1


def test_a_model_that_is_gone_has_nothing_running(metrics: Metrics) -> None:
    """A reload took it away in the middle of its work; nobody reports a step of it again."""
    metrics.bind(lambda: NodeStatus("ready", (), ()))
    of = {"model_name": "chat", "engine": "0"}
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert value(metrics, f"vllm:{name}", **of) == 0
    for reason in ("capacity", "deferred"):
        assert value(metrics, "vllm:num_requests_waiting_by_reason", reason=reason, **of) == 0
    assert value(metrics, "vllm:prompt_tokens_total", **of) == 30, "counters stay"


def test_nothing_of_the_node_before_bind() -> None:
    assert not [s for s in samples(Metrics(["chat"])) if s.name.startswith("onecard_memory")]


def test_the_caches_are_those_of_the_models_served_now(metrics: Metrics) -> None:
    def caches() -> list[dict[str, str]]:
        return [s.labels for s in samples(metrics) if s.name == "vllm:cache_config_info" and s.value == 1]

    def serve(**blocks: int | None) -> None:
        models = [
            ModelStatus(name, "", "card0", "ready", *[0] * 8, n and CacheConfig(16, n, False))
            for name, n in blocks.items()
        ]
        metrics.bind(lambda: NodeStatus("ready", (), tuple(models)))

    of = {"engine": "0", "block_size": "16"}
    chat = {"model_name": "chat", **of, "enable_prefix_caching": "True", "num_gpu_blocks": "40"}
    assert caches() == [chat]
    serve(chat=20, new=8, vectors=None)  # a reload has changed one and brought another
    smaller = {**chat, "enable_prefix_caching": "False", "num_gpu_blocks": "20"}
    assert caches() == [smaller, {**smaller, "model_name": "new", "num_gpu_blocks": "8"}]
    serve(new=8)
    assert [labels["model_name"] for labels in caches()] == ["new"]


def test_rejections(metrics: Metrics) -> None:
    metrics.rejected("chat", "queue_full")
    assert value(metrics, "vllm:admission_rejections_total", model_name="chat", reason="queue_full") == 1


def test_http_series(metrics: Metrics) -> None:
    metrics.http("/v1/embeddings", "POST", 200, 0.02, 120, 9000)
    metrics.http("/v1/embeddings", "POST", 404, 0.001, 80, 200)
    of = {"handler": "/v1/embeddings", "method": "POST"}
    assert value(metrics, "http_requests_total", status="2xx", **of) == 1
    assert value(metrics, "http_requests_total", status="4xx", **of) == 1
    assert value(metrics, "http_request_duration_seconds_count", **of) == 2
    assert value(metrics, "http_request_duration_highr_seconds_count") == 2
    assert value(metrics, "http_request_size_bytes_sum", handler="/v1/embeddings") == 200
    assert value(metrics, "http_response_size_bytes_sum", handler="/v1/embeddings") == 9200


def test_two_servers_in_one_process_share_nothing() -> None:
    first, second = Metrics(["chat"]), Metrics(["chat"])
    first.record_step(step())
    assert value(second, "vllm:prompt_tokens_total", model_name="chat") == 0


def test_token_buckets() -> None:
    assert one_two_five(4096) == (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
    assert one_two_five(10) == (1, 2, 5, 10)


def queries(node: object) -> Iterator[str]:
    """Every PromQL expression of a Grafana board, wherever it nests."""
    if isinstance(node, dict):
        if isinstance(node.get("expr"), str):
            yield node["expr"]
        for child in node.values():
            yield from queries(child)
    elif isinstance(node, list):
        for child in node:
            yield from queries(child)


def selectors(query: str) -> list[tuple[str, set[str]]]:
    """The `name{label=...}` selectors of a query, with the labels that it groups by."""
    grouped = {
        label.strip() for group in re.findall(r"by\s*\(([^)]*)\)", query) for label in group.split(",")
    }
    found = re.findall(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}", query)
    return [(name, grouped | set(re.findall(r"(\w+)\s*=", labels))) for name, labels in found]


@pytest.mark.skipif(not BOARD.exists(), reason="vLLM's Grafana board lies beside the project, not in it")
def test_vllms_stock_grafana_board_finds_every_series(metrics: Metrics) -> None:
    page = samples(metrics)
    wanted = [s for query in queries(json.loads(BOARD.read_text())) for s in selectors(query)]
    assert len(wanted) > 30
    missing = [
        (name, labels)
        for name, labels in wanted
        if not any(
            s.name == name and labels <= s.labels.keys() and s.labels["model_name"] == "chat" for s in page
        )
    ]
    assert not missing
