"""Gauges and counters of the pages of a card: who holds them, and who had to give some back.

From the live ledger where the node keeps one; else only what is free and what is owned is known.
"""

from collections.abc import Callable, Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from onecard.engines.api import CardLedger, ModelLedger, NodeStatus

PREEMPTION_CAUSES = ("memory", "floor", "wake")
NOBODY = ""
BY_MODEL = ("card", "model_name")


def page_families(status: NodeStatus, ledgers: Sequence[CardLedger] | None) -> list[Metric]:
    return [
        _pages(status, ledgers),
        _loans(ledgers or ()),
        _recalls(ledgers or ()),
        _preemptions(ledgers or ()),
    ]


def _pages(status: NodeStatus, ledgers: Sequence[CardLedger] | None) -> Metric:
    family = GaugeMetricFamily(
        "onecard_pages",
        "Arena pages: home (weights), active (KV in use), cached, idle (held, empty), free; they add up to "
        "the arena. Without a ledger: owned (by a model), free.",
        labels=["card", "model_name", "kind"],
    )
    if ledgers is None:
        _add_owned(family, status)
    for card in ledgers or ():
        family.add_metric([card.card, NOBODY, "free"], card.free_pages)
        for model in card.models:
            for kind, pages in _kinds(model).items():
                family.add_metric([card.card, model.name, kind], pages)
    return family


def _kinds(model: ModelLedger) -> dict[str, int]:
    return {
        "home": model.claimed_pages,
        "active": model.active_pages,
        "cached": model.cached_pages,
        "idle": model.idle_pages,
    }


def _add_owned(family: GaugeMetricFamily, status: NodeStatus) -> None:
    page_bytes = {card.name: card.page_bytes for card in status.cards}
    for card in status.cards:
        family.add_metric([card.name, NOBODY, "free"], card.pages_free)
    for model in status.models:
        if size := page_bytes.get(model.card):
            family.add_metric([model.card, model.name, "owned"], model.kv_bytes_owned // size)


def _loans(ledgers: Iterable[CardLedger]) -> Metric:
    family = GaugeMetricFamily(
        "onecard_borrowed_bytes",
        "Bytes of pages that a model has above its floor: on loan, until somebody is entitled to them.",
        labels=BY_MODEL,
    )
    return _by_model(family, ledgers, lambda card, model: model.borrowed_pages * card.page_bytes)


def _recalls(ledgers: Iterable[CardLedger]) -> Metric:
    family = CounterMetricFamily(
        "onecard_page_recalls",
        "Pages taken back from a model that had them on loan or cached in them.",
        labels=BY_MODEL,
    )
    return _by_model(family, ledgers, lambda card, model: card.recalls.get(model.name, 0))


def _by_model(
    family: GaugeMetricFamily | CounterMetricFamily,
    ledgers: Iterable[CardLedger],
    value: Callable[[CardLedger, ModelLedger], int],
) -> Metric:
    for card in ledgers:
        for model in card.models:
            family.add_metric([card.card, model.name], value(card, model))
    return family


def _preemptions(ledgers: Iterable[CardLedger]) -> Metric:
    family = CounterMetricFamily(
        "onecard_preemptions",
        "Sequences that gave up their blocks, by cause: the model's own memory, another's floor, a wake-up.",
        labels=["card", "cause"],
    )
    for card in ledgers:
        for cause in PREEMPTION_CAUSES:
            family.add_metric([card.card, cause], card.preemptions.get(cause, 0))
    return family
