"""A memory plan as a bar: who gets which part of a card.

    ███████▓▓▓▓▓▓▓▓▓▓██░░░░░░░░░░░░░░░░░░░▒▒▞▞╌····▚▚▚
    weights and floor of each model | on loan | workspace | graphs | slack | free | others

The widths are bytes to scale, except that nothing that exists is drawn thinner than one cell. Models that
start asleep stand in the legend only: what would be theirs is lent, and may be other models' as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from onecard.gateway.cli.terminal import table
from onecard.registry.units import format_bytes

COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")
WEIGHTS, FLOOR, LOANABLE = "█", "▓", "░"
WORKSPACE, GRAPHS, SLACK, FREE, OTHERS = "▒", "▞", "╌", "·", "▚"


class Share(Protocol):
    """What a model gets of a card (`engines.memory.plan.ModelPlan`)."""

    @property
    def name(self) -> str: ...
    @property
    def awake_at_start(self) -> bool: ...
    @property
    def home_first_page(self) -> int: ...
    @property
    def home_pages(self) -> int: ...
    @property
    def floor_pages(self) -> int: ...
    @property
    def ceiling_pages(self) -> int: ...
    @property
    def kv_tokens_floor(self) -> int: ...
    @property
    def kv_tokens_ceiling(self) -> int: ...


class Plan(Protocol):
    """A card's plan (`engines.memory.plan.CardPlan`)."""

    @property
    def card(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def total_bytes(self) -> int: ...
    @property
    def other_bytes(self) -> int: ...
    @property
    def unused_bytes(self) -> int: ...
    @property
    def budget_bytes(self) -> int: ...
    @property
    def workspace_bytes(self) -> int: ...
    @property
    def graph_bytes(self) -> int: ...
    @property
    def slack_bytes(self) -> int: ...
    @property
    def arena_bytes(self) -> int: ...
    @property
    def loanable_bytes(self) -> int: ...
    @property
    def page_bytes(self) -> int: ...
    @property
    def num_pages(self) -> int: ...
    @property
    def waste(self) -> float: ...
    @property
    def models(self) -> Sequence[Share]: ...
    @property
    def notes(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class Part:
    """A stretch of the bar and its line in the legend; `share` where it is a model's KV. What isn't `drawn`
    has a line only.
    """

    glyph: str
    colour: str
    label: str
    nbytes: int
    share: Share | None = None
    drawn: bool = True


def parts_of(plan: Plan) -> list[Part]:
    """The bar from left to right; what is drawn adds up to the card's bytes."""
    awake: list[Part] = []
    asleep: list[Part] = []
    for share, colour in zip(plan.models, colours(plan), strict=True):
        (awake if share.awake_at_start else asleep).extend(_model_parts(share, colour, plan.page_bytes))
    return [
        *awake,
        Part(LOANABLE, "white", "KV on loan to whoever has work", plan.loanable_bytes),
        *asleep,
        Part(WORKSPACE, "bright_black", "workspace", plan.workspace_bytes),
        Part(GRAPHS, "bright_black", "CUDA graphs", plan.graph_bytes),
        Part(SLACK, "bright_black", "slack", plan.slack_bytes),
        Part(FREE, "bright_black", "not given to onecard", plan.unused_bytes),
        Part(OTHERS, "bright_black", "in use by others", plan.other_bytes),
    ]


def _model_parts(share: Share, colour: str, page_bytes: int) -> list[Part]:
    asleep, drawn = "" if share.awake_at_start else ", asleep at start", share.awake_at_start
    weights, floor = share.home_pages * page_bytes, share.floor_pages * page_bytes
    pages = f"pages {share.home_first_page:,} to {share.home_first_page + share.home_pages - 1:,}"
    return [
        Part(WEIGHTS, colour, f"{share.name} weights, {pages}{asleep}", weights, drawn=drawn),
        Part(FLOOR, colour, f"{share.name} KV{asleep}", floor, share, drawn),
    ]


def colours(plan: Plan) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(len(plan.models))]


def widths(sizes: Sequence[int], cells: int) -> list[int]:
    """`cells` shared out to scale (largest remainder), at least one for each size; `sizes` are positive."""
    if not sizes:
        return []
    spare, total = max(cells - len(sizes), 0), sum(sizes)
    exact = [size * spare / total for size in sizes]
    given = [int(share) for share in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: given[i] - exact[i])
    for i in by_remainder[: spare - sum(given)]:
        given[i] += 1
    return [1 + share for share in given]


class Bar:
    """A rich renderable that fills its line."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = [part for part in parts if part.drawn and part.nbytes > 0]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cells = widths([part.nbytes for part in self._parts], options.max_width)
        for part, width in zip(self._parts, cells, strict=True):
            yield Segment(part.glyph * width, Style.parse(part.colour))
        yield Segment.line()


def print_plans(console: Console, plans: Sequence[Plan]) -> None:
    for plan in plans:
        parts = parts_of(plan)
        console.print(_headline(plan))
        console.print(Bar(parts))
        console.print(_legend(plan, parts))
        for note in plan.notes:
            console.print(note, highlight=False)


def _headline(plan: Plan) -> Text:
    return Text.assemble(
        (plan.card, "bold"),
        f" on {plan.device}: {format_bytes(plan.budget_bytes)} of {format_bytes(plan.total_bytes)}; arena "
        f"{format_bytes(plan.arena_bytes)}, {plan.num_pages:,} pages of {format_bytes(plan.page_bytes)}, "
        f"{100 * plan.waste:.1f} % lost at page edges",
    )


def _legend(plan: Plan, parts: Sequence[Part]) -> Table:
    numbers = ("bytes", "tokens", "at most", "tokens at most")
    rows = table("", "", *numbers, right=numbers)
    for part in parts:
        glyph, size = Text(part.glyph, part.colour), format_bytes(part.nbytes)
        if part.share is None and part.nbytes:
            rows.add_row(glyph, part.label, size)
        elif part.share is not None and part.share.ceiling_pages:
            most = format_bytes(part.share.ceiling_pages * plan.page_bytes)
            tokens, most_tokens = f"{part.share.kv_tokens_floor:,}", f"{part.share.kv_tokens_ceiling:,}"
            rows.add_row(glyph, part.label, size, tokens, most, most_tokens)
    return rows
