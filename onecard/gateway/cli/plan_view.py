"""A memory plan as a bar: who gets which part of a card.

    ███████▓▓▓▓▓▓▓▓▓▓██░░░░░░░░░░░░░░░░░░░▒▒····▚▚▚
    weights and floor of each model | on loan | workspace | free | others

The widths are bytes to scale, except that nothing that exists is drawn thinner than one cell.
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
WEIGHTS, FLOOR, LOANABLE, WORKSPACE, FREE, OTHERS = "█", "▓", "░", "▒", "·", "▚"


class Share(Protocol):
    """What a model gets of a card (`engines.memory.plan.ModelPlan`)."""

    @property
    def name(self) -> str: ...
    @property
    def weight_bytes(self) -> int: ...
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
    def slack_bytes(self) -> int: ...
    @property
    def arena_bytes(self) -> int: ...
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
    """A stretch of the bar and its line in the legend; `share` where it is a model's KV."""

    glyph: str
    colour: str
    label: str
    nbytes: int
    share: Share | None = None


def parts_of(plan: Plan) -> list[Part]:
    """The bar from left to right; adds up to the card's bytes."""
    parts = []
    for share, colour in zip(plan.models, colours(plan), strict=True):
        parts.append(Part(WEIGHTS, colour, f"{share.name} weights", share.weight_bytes))
        parts.append(Part(FLOOR, colour, f"{share.name} KV", share.floor_pages * plan.page_bytes, share))
    parts += [
        Part(LOANABLE, "white", "KV on loan to whoever has work", loanable_bytes(plan)),
        Part(WORKSPACE, "bright_black", "workspace and slack", plan.workspace_bytes + plan.slack_bytes),
        Part(FREE, "bright_black", "not given to onecard", plan.unused_bytes),
        Part(OTHERS, "bright_black", "in use by others", plan.other_bytes),
    ]
    return parts


def colours(plan: Plan) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(len(plan.models))]


def loanable_bytes(plan: Plan) -> int:
    """The part of the arena that no floor claims: whoever has work gets it."""
    return plan.arena_bytes - sum(share.floor_pages for share in plan.models) * plan.page_bytes


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
        self._parts = [part for part in parts if part.nbytes > 0]

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
