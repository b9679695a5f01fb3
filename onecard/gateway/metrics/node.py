"""Gauges read from the node at scrape time: bytes by model, pages by card, the state and the cache of each
model, the health of each card.

The ledger already knows these numbers, so nothing is counted twice: a scrape asks for one `NodeStatus` and,
where the node keeps one, for its page ledger.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import get_args

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from onecard.engines.api import CardLedger, CardStatus, ModelState, ModelStatus, NodeStatus
from onecard.gateway.metrics.families import ENGINE_LABEL, MODEL_LABELS
from onecard.gateway.metrics.health import health_families
from onecard.gateway.metrics.pages import page_families

NodeStatusSource = Callable[[], NodeStatus]
LedgerSource = Callable[[], Sequence[CardLedger]]


class NodeCollector(Collector):
    """Turns the status of the bound node into gauges; says nothing before `source` is set."""

    def __init__(self) -> None:
        self.source: NodeStatusSource | None = None
        self.ledger: LedgerSource | None = None

    def describe(self) -> Iterable[Metric]:
        """The families without samples: a registry asks for names before there is a node."""
        return self._families(NodeStatus("starting", (), ()), None)

    def collect(self) -> Iterable[Metric]:
        return self._families(self.source(), self.ledger and self.ledger()) if self.source else ()

    def _families(self, status: NodeStatus, ledgers: Sequence[CardLedger] | None) -> list[Metric]:
        return [
            _model_bytes(status.models),
            _card_bytes(status.cards),
            *page_families(status, ledgers),
            _model_states(status.models),
            _caches(status.models),
            *health_families(status.cards),
        ]


def _model_bytes(models: Iterable[ModelStatus]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "onecard_memory_bytes",
        "Bytes by model: weights, KV in use by requests, KV pages owned, guaranteed floor, ceiling.",
        labels=["card", "model_name", "kind"],
    )
    for m in models:
        kinds = {
            "weights": m.weight_bytes,
            "kv_used": m.kv_bytes_used,
            "kv_owned": m.kv_bytes_owned,
            "floor": m.floor_bytes,
            "ceiling": m.ceiling_bytes,
        }
        for kind, nbytes in kinds.items():
            family.add_metric([m.card, m.name, kind], nbytes)
    return family


def _card_bytes(cards: Iterable[CardStatus]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "onecard_card_bytes",
        "Bytes of a card: all it has, what onecard may take, its arena, one page of the arena.",
        labels=["card", "kind"],
    )
    for c in cards:
        kinds = {
            "total": c.total_bytes,
            "budget": c.budget_bytes,
            "arena": c.arena_bytes,
            "page": c.page_bytes,
        }
        for kind, nbytes in kinds.items():
            family.add_metric([c.name, kind], nbytes)
    return family


def _model_states(models: Iterable[ModelStatus]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "onecard_model_state",
        "1 for the state a model is in, 0 for the others.",
        labels=["model_name", "state"],
    )
    for m in models:
        for state in get_args(ModelState):
            family.add_metric([m.name, state], float(m.state == state))
    return family


def _caches(models: Iterable[ModelStatus]) -> GaugeMetricFamily:
    """vLLM's name and labels, those that say something here."""
    family = GaugeMetricFamily(
        "vllm:cache_config_info",
        "The KV cache of a model; blocks are those of its ceiling.",
        labels=[*MODEL_LABELS, "block_size", "enable_prefix_caching", "num_gpu_blocks"],
    )
    for m in models:
        if m.cache is not None:
            config = (m.cache.block_size, m.cache.prefix_caching, m.cache.num_blocks)
            family.add_metric([m.name, ENGINE_LABEL, *map(str, config)], 1.0)
    return family
