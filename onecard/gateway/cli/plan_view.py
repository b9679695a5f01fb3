"""A memory plan as a bar: who gets which part of a card.

    ███████▓▓▓▓▓▓▓▓▓▓██░░░░░░░░░░░░░░░░░░░▒▒▞▞╌····▚▚▚
    weights and guaranteed KV of each model | lent | scratch | graphs | spare | not given | others

The widths are bytes to scale, except that nothing that exists is drawn thinner than one cell. Models that
start asleep stand in the legend only: what would be theirs is lent, and may be other models' as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from onecard.gateway.cli.bars import say
from onecard.gateway.cli.terminal import table
from onecard.registry.units import format_bytes

if TYPE_CHECKING:
    from onecard.engines.node.factory import CardPlan

COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")
WEIGHTS, FLOOR, LOANABLE = "█", "▓", "░"
WORKSPACE, GRAPHS, SLACK, FREE, OTHERS = "▒", "▞", "╌", "·", "▚"

KV_CACHE = (
    "KV cache: memory of requests in progress, and of prompts that may come again. What stands first is "
    "guaranteed to the model whatever the others do; at most: with what it borrows from them."
)


@dataclass(frozen=True)
class Part:
    """A stretch of the bar and its line in the legend. What isn't `drawn` has a line only.

    `limits` are those of a model's KV: tokens at least, bytes and tokens at most.
    """

    glyph: str
    colour: str
    label: str
    nbytes: int
    limits: tuple[str, ...] = ()
    drawn: bool = True


def parts_of(plan: "CardPlan") -> list[Part]:
    """The bar from left to right; what is drawn adds up to the card's bytes."""
    awake: list[Part] = []
    asleep: list[Part] = []
    for model, colour in zip(plan.models, cycle(COLOURS)):
        name, page, drawn = model.name, plan.page_bytes, model.awake_at_start
        where, state = (awake, "") if drawn else (asleep, ", asleep at start")
        where.append(Part(WEIGHTS, colour, f"{name}: weights{state}", model.home_pages * page, drawn=drawn))
        if model.ceiling_pages:
            most = format_bytes(model.ceiling_pages * page)
            limits = f"{model.kv_tokens_floor:,}", most, f"{model.kv_tokens_ceiling:,}"
            label = f"{name}: KV cache{state}"
            where.append(Part(FLOOR, colour, label, model.floor_pages * page, limits, drawn))
    return [
        *awake,
        Part(LOANABLE, "white", "KV cache, lent as needed", plan.loanable_bytes),
        *asleep,
        Part(WORKSPACE, "bright_black", "scratch space of one step", plan.workspace_bytes),
        Part(GRAPHS, "bright_black", "CUDA graphs", plan.graph_bytes),
        Part(SLACK, "bright_black", "spare", plan.slack_bytes),
        Part(FREE, "bright_black", "not given to onecard", plan.unused_bytes),
        Part(OTHERS, "bright_black", "in use by other programs", plan.other_bytes),
    ]


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


def print_plans(console: Console, plans: "Sequence[CardPlan]") -> None:
    for plan in plans:
        parts = parts_of(plan)
        console.print(_headline(plan))
        console.print(Bar(parts))
        console.print(_legend(parts))
        for note in plan.notes:
            say(console, note)
    if any(part.limits for plan in plans for part in parts_of(plan)):
        console.print(KV_CACHE, highlight=False)


def _headline(plan: "CardPlan") -> Text:
    return Text.assemble(
        (plan.card, "bold"),
        f" on {plan.device}: onecard takes {format_bytes(plan.budget_bytes)} of its "
        f"{format_bytes(plan.total_bytes)}",
    )


def _legend(parts: Sequence[Part]) -> Table:
    numbers = ("memory", "tokens", "at most", "tokens at most")
    rows = table("", "", *numbers, right=numbers)
    for part in parts:
        if part.nbytes or part.limits:
            label = Text(part.label)  # whatever a name has in it, it is no markup
            rows.add_row(Text(part.glyph, part.colour), label, format_bytes(part.nbytes), *part.limits)
    return rows
