"""A memory plan as a bar: who gets which part of a card.

    card0  cpu  ███████▓▓▓▓▓▓▓▓▓▓░░░░░░░░░░░░░░░░░░░▒▒·····
           weights, floor of each model | loanable | workspace | not ours

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

from onecard.gateway.cli.terminal import human_bytes, table

COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")
WEIGHTS, FLOOR, LOANABLE, WORKSPACE, FREE = "█", "▓", "░", "▒", "·"


class Facts(Protocol):
    """What a card is (`engines.memory.plan.CardFacts`)."""

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def total_bytes(self) -> int: ...
    @property
    def budget_bytes(self) -> int: ...


class Share(Protocol):
    """What a model gets of a card."""

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
    def facts(self) -> Facts: ...
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


@dataclass(frozen=True)
class Part:
    """A stretch of the bar."""

    glyph: str
    colour: str
    nbytes: int


def parts_of(plan: Plan) -> list[Part]:
    """The bar from left to right; adds up to the card's bytes."""
    parts = []
    for share, colour in zip(plan.models, colours(plan), strict=True):
        parts.append(Part(WEIGHTS, colour, share.weight_bytes))
        parts.append(Part(FLOOR, colour, share.floor_pages * plan.page_bytes))
    parts.append(Part(LOANABLE, "white", loanable_bytes(plan)))
    parts.append(Part(WORKSPACE, "bright_black", workspace_bytes(plan)))
    parts.append(Part(FREE, "bright_black", plan.facts.total_bytes - plan.facts.budget_bytes))
    return [part for part in parts if part.nbytes > 0]


def colours(plan: Plan) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(len(plan.models))]


def loanable_bytes(plan: Plan) -> int:
    """The part of the arena that no floor claims: whoever has work gets it."""
    return plan.arena_bytes - sum(share.floor_pages for share in plan.models) * plan.page_bytes


def workspace_bytes(plan: Plan) -> int:
    """Activations of the largest step, and slack."""
    return plan.facts.budget_bytes - plan.arena_bytes - sum(share.weight_bytes for share in plan.models)


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
        self._parts = parts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cells = widths([part.nbytes for part in self._parts], options.max_width)
        for part, width in zip(self._parts, cells, strict=True):
            yield Segment(part.glyph * width, Style.parse(part.colour))
        yield Segment.line()


def print_plans(console: Console, plans: Sequence[Plan]) -> None:
    for plan in plans:
        console.print(_headline(plan))
        console.print(Bar(parts_of(plan)))
        console.print(_legend(plan))


def _headline(plan: Plan) -> Text:
    facts = plan.facts
    return Text.assemble(
        (facts.name, "bold"),
        f"  {facts.device}: {human_bytes(facts.budget_bytes)} of {human_bytes(facts.total_bytes)}, "
        f"arena {human_bytes(plan.arena_bytes)} in {plan.num_pages:,} pages of {human_bytes(plan.page_bytes)}"
        f" ({100 * plan.waste:.1f} % lost at page edges)",
    )


def _legend(plan: Plan) -> Table:
    numbers = ("bytes", "tokens", "at most", "tokens at most")
    rows = table("", "what", *numbers, right=numbers)
    for share, colour in zip(plan.models, colours(plan), strict=True):
        rows.add_row(Text(WEIGHTS, colour), f"{share.name} weights", human_bytes(share.weight_bytes))
        if share.ceiling_pages:
            rows.add_row(
                Text(FLOOR, colour),
                f"{share.name} KV, guaranteed",
                human_bytes(share.floor_pages * plan.page_bytes),
                f"{share.kv_tokens_floor:,}",
                human_bytes(share.ceiling_pages * plan.page_bytes),
                f"{share.kv_tokens_ceiling:,}",
            )
    rows.add_row(Text(LOANABLE, "white"), "KV on loan to whoever has work", human_bytes(loanable_bytes(plan)))
    rows.add_row(Text(WORKSPACE, "bright_black"), "workspace and slack", human_bytes(workspace_bytes(plan)))
    unused = plan.facts.total_bytes - plan.facts.budget_bytes
    rows.add_row(Text(FREE, "bright_black"), "left to others", human_bytes(unused))
    return rows
