"""One line a card for the log: every term of the memory plan beside what was measured."""

from collections.abc import Iterator, Sequence

from onecard.engines.node.served import Card, ServedModel
from onecard.registry.units import counted
from onecard.registry.units import format_bytes as human


def memory_report(card: Card, models: Sequence[ServedModel]) -> str:
    """`models`: those on the card. Where nothing could be measured (on a CPU, without a warm-up) only the
    plan is given."""
    return f"{card.plan.card}: {'; '.join(_terms(card, models))}"


def _terms(card: Card, models: Sequence[ServedModel]) -> Iterator[str]:
    plan = card.plan
    yield f"{human(plan.total_bytes)} in all"
    yield f"other processes {human(plan.other_bytes)}"
    for model in models:
        share, weights = plan.model(model.info.name), model.card_model.weights.weight_bytes
        held = f"weights {human(weights)}" if weights else "not loaded"
        yield f"home of {share.name} {human(share.home_pages * plan.page_bytes)} ({held})"
    peaks = [model.card_model.hooks.peak_bytes for model in models]
    graphs = [model.card_model.hooks.graph_bytes for model in models]
    yield f"workspace {_beside(plan.workspace_bytes, _largest(peaks))}"
    yield f"graphs {_beside(plan.graph_bytes, _sum(graphs))}"
    yield f"arena {human(plan.arena_bytes)}, {counted(plan.num_pages, 'page')} of {human(plan.page_bytes)}"
    for share in plan.models:
        if share.block_bytes is not None:
            tokens = f"{share.kv_tokens_floor} to {share.kv_tokens_ceiling} tokens"
            yield f"KV of {share.name} {tokens} (guaranteed, at most)"


def _beside(planned: int, measured: int | None) -> str:
    return human(planned) if measured is None else f"{human(planned)} planned, {human(measured)} measured"


def _largest(figures: Sequence[int | None]) -> int | None:
    return max((figure for figure in figures if figure is not None), default=None)


def _sum(figures: Sequence[int | None]) -> int | None:
    known = [figure for figure in figures if figure is not None]
    return sum(known) if known else None
