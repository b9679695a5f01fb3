"""Read from the node at scrape time: bytes by model, pages by card and who gave some back, the state and the
cache of each model, the health of each card.

The ledger already knows these numbers, so nothing is counted twice: a scrape asks for one `NodeStatus` and,
where the node keeps one, for its page ledger.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import get_args

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from onecard.engines.api import CardLedger, CardStatus, ModelState, ModelStatus, NodeStatus
from onecard.gateway.metrics.families import ENGINE_LABEL, MODEL_LABELS, Samples, counter_of, gauge_of
from onecard.gateway.metrics.health import health_families

NodeStatusSource = Callable[[], NodeStatus]
LedgerSource = Callable[[], Sequence[CardLedger]]


class NodeCollector(Collector):
    """Turns the status of the bound node into gauges; says nothing before `source` is set and looked at."""

    def __init__(self) -> None:
        self.source: NodeStatusSource | None = None
        self.ledger: LedgerSource | None = None
        self._seen: tuple[NodeStatus, Sequence[CardLedger] | None] | None = None

    def look(self) -> NodeStatus | None:
        """What `collect` will tell of, whichever thread it runs on; to be called on the node's own."""
        if self.source is not None:
            self._seen = (self.source(), self.ledger and self.ledger())
        return self._seen and self._seen[0]

    def describe(self) -> Iterable[Metric]:
        """The families without samples: a registry asks for names before there is a node."""
        return self._families(NodeStatus("ready", (), ()), None)

    def collect(self) -> Iterable[Metric]:
        return self._families(*self._seen) if self._seen else ()

    def _families(self, status: NodeStatus, ledgers: Sequence[CardLedger] | None) -> list[Metric]:
        return [
            _model_bytes(status.models),
            _card_bytes(status.cards),
            _pages(status, ledgers),
            _loans(ledgers or ()),
            _recalls(ledgers or ()),
            _preemptions(ledgers or ()),
            _model_states(status.models),
            _caches(status.models),
            *health_families(status.cards),
        ]


PREEMPTION_CAUSES = ("memory", "floor", "wake")
NOBODY = ""
MODEL_BYTES = {
    "weights": "weight_bytes",
    "kv_used": "kv_bytes_used",
    "kv_owned": "kv_bytes_owned",
    "floor": "floor_bytes",
    "ceiling": "ceiling_bytes",
}
CARD_BYTES = {"total": "total_bytes", "budget": "budget_bytes", "arena": "arena_bytes", "page": "page_bytes"}


def _model_bytes(models: Iterable[ModelStatus]) -> Metric:
    return gauge_of(
        "onecard_memory_bytes",
        "Bytes by model: weights; of KV: in use by requests, pages owned, guaranteed floor, ceiling.",
        ("card", "model_name", "kind"),
        (((m.card, m.name, kind), getattr(m, field)) for m in models for kind, field in MODEL_BYTES.items()),
    )


def _card_bytes(cards: Iterable[CardStatus]) -> Metric:
    return gauge_of(
        "onecard_card_bytes",
        "Bytes of a card: all it has, what onecard may take, its arena, one page of the arena.",
        ("card", "kind"),
        (((c.name, kind), getattr(c, field)) for c in cards for kind, field in CARD_BYTES.items()),
    )


def _model_states(models: Iterable[ModelStatus]) -> Metric:
    return gauge_of(
        "onecard_model_state",
        "1 for the state a model is in, 0 for the others.",
        ("model_name", "state"),
        (((m.name, state), float(m.state == state)) for m in models for state in get_args(ModelState)),
    )


def _caches(models: Iterable[ModelStatus]) -> Metric:
    """vLLM's name and labels, those that say something here."""
    caches = ((m.name, m.cache) for m in models if m.cache is not None)
    return gauge_of(
        "vllm:cache_config_info",
        "The KV cache of a model; blocks are those of its ceiling.",
        (*MODEL_LABELS, "block_size", "enable_prefix_caching", "num_gpu_blocks"),
        (
            ((name, ENGINE_LABEL, *map(str, (c.block_size, c.prefix_caching, c.num_blocks))), 1.0)
            for name, c in caches
        ),
    )


def _pages(status: NodeStatus, ledgers: Sequence[CardLedger] | None) -> Metric:
    return gauge_of(
        "onecard_pages",
        "Arena pages: home (weights), active (KV in use), cached, idle (held, empty), free; they add up to "
        "the arena. Without a ledger: owned (by a model), free.",
        ("card", "model_name", "kind"),
        _owned(status) if ledgers is None else _by_use(ledgers),
    )


def _by_use(ledgers: Sequence[CardLedger]) -> Samples:
    for card in ledgers:
        yield (card.card, NOBODY, "free"), card.free_pages
        for model in card.models:
            yield (card.card, model.name, "home"), model.claimed_pages
            yield (card.card, model.name, "active"), model.active_pages
            yield (card.card, model.name, "cached"), model.cached_pages
            yield (card.card, model.name, "idle"), model.idle_pages


def _owned(status: NodeStatus) -> Samples:
    page_bytes = {card.name: card.page_bytes for card in status.cards}
    for card in status.cards:
        yield (card.name, NOBODY, "free"), card.pages_free
    for model in status.models:
        if size := page_bytes.get(model.card):
            yield (model.card, model.name, "owned"), model.kv_bytes_owned // size


def _loans(ledgers: Iterable[CardLedger]) -> Metric:
    return gauge_of(
        "onecard_borrowed_bytes",
        "Bytes of pages that a model has above its floor: on loan, until somebody is entitled to them.",
        ("card", "model_name"),
        (((c.card, m.name), m.borrowed_pages * c.page_bytes) for c in ledgers for m in c.models),
    )


def _recalls(ledgers: Iterable[CardLedger]) -> Metric:
    return counter_of(
        "onecard_page_recalls",
        "Pages taken back from a model that had them on loan or cached in them.",
        ("card", "model_name"),
        (((c.card, m.name), c.recalls.get(m.name, 0)) for c in ledgers for m in c.models),
    )


def _preemptions(ledgers: Iterable[CardLedger]) -> Metric:
    return counter_of(
        "onecard_preemptions",
        "Sequences that gave up their blocks, by cause: the model's own memory, another's floor, a wake-up.",
        ("card", "cause"),
        (((c.card, cause), c.preemptions.get(cause, 0)) for c in ledgers for cause in PREEMPTION_CAUSES),
    )
