"""The bar of a memory plan: to scale, complete, and readable."""

import io
from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from onecard.gateway.cli.plan_view import parts_of, print_plans, widths

GIB = 1 << 30


@dataclass
class Share:
    name: str
    home_first_page: int
    home_pages: int
    floor_pages: int
    ceiling_pages: int
    kv_tokens_floor: int
    kv_tokens_ceiling: int
    awake_at_start: bool = True


@dataclass
class Plan:
    """16 GiB: others use 1, 2 are left, onecard has 13: an arena of 11.75 with 2.5 of weights, 4 guaranteed
    and 5.25 to lend; workspace, graphs, slack. `night` sleeps where `vectors` and the loans are."""

    card: str = "card0"
    device: str = "cuda:0"
    total_bytes: int = 16 * GIB
    other_bytes: int = GIB
    unused_bytes: int = 2 * GIB
    budget_bytes: int = 13 * GIB
    workspace_bytes: int = GIB // 2
    graph_bytes: int = GIB // 4
    slack_bytes: int = GIB // 2
    arena_bytes: int = 47 * GIB // 4
    loanable_bytes: int = 21 * GIB // 4
    page_bytes: int = GIB // 32
    num_pages: int = 376
    waste: float = 0.012
    notes: tuple[str, ...] = ("a note",)
    models: list[Share] = field(
        default_factory=lambda: [
            Share("chat", 0, 64, 128, 304, 40_000, 95_000),
            Share("vectors", 64, 16, 0, 0, 0, 0),
            Share("night", 72, 200, 32, 176, 1_000, 5_000, awake_at_start=False),
        ]
    )


def drawn(plan: Plan, width: int = 100) -> str:
    out = io.StringIO()
    print_plans(Console(file=out, width=width), [plan])
    return out.getvalue()


def test_the_parts_add_up_to_the_card() -> None:
    assert sum(part.nbytes for part in parts_of(Plan()) if part.drawn) == 16 * GIB


def test_the_bar_fills_its_line_to_scale() -> None:
    bar = next(line for line in drawn(Plan(), 166).splitlines() if line.startswith("█"))
    assert len(bar) == 166
    cells = {glyph: bar.count(glyph) for glyph in "█▓░▒▞╌·▚"}
    expected = {"█": 25, "▓": 40, "░": 52, "▒": 5, "▞": 3, "╌": 5, "·": 20, "▚": 10}  # tenths of a GiB
    assert sum(cells.values()) == 166
    assert all(abs(cells[glyph] - expected[glyph]) <= 5 for glyph in expected), cells


def test_the_legend_has_the_numbers() -> None:
    text = drawn(Plan())
    assert "card0 on cuda:0: onecard takes 13GiB of its 16GiB" in text
    row = next(line.split() for line in text.splitlines() if "chat: KV" in line)
    assert row == ["▓", "chat:", "KV", "cache", "4GiB", "40,000", "9.5GiB", "95,000"]
    assert "chat: weights  " in text
    assert "vectors: weights  " in text
    assert "vectors: KV" not in text, "an encoder keeps none"
    assert "a note" in text


def test_the_words_are_explained() -> None:
    text = drawn(Plan())
    assert "KV cache: memory of requests in progress, and of prompts that may come again." in " ".join(
        text.split()
    )
    assert not {"arena", "slack", "workspace", "page"} & set(text.split()), "words of the docs"
    without = drawn(replace(Plan(), models=Plan().models[1:2]))
    assert "KV cache: memory" not in without, "nobody keeps any"


def test_a_name_is_no_markup() -> None:
    plan = replace(Plan(), models=[replace(Plan().models[0], name="[red]x")])
    assert "[red]x: weights" in drawn(plan)


def test_who_starts_asleep_is_listed_but_not_drawn() -> None:
    text = drawn(Plan(), 166)
    row = next(line.split() for line in text.splitlines() if "night: KV" in line)
    assert row[4:] == ["asleep", "at", "start", "1GiB", "1,000", "5.5GiB", "5,000"]
    assert "night: weights, asleep at start" in text
    without = drawn(replace(Plan(), models=Plan().models[:2]), 166)
    assert text.splitlines()[1] == without.splitlines()[1]


def test_a_narrow_terminal_still_shows_every_part() -> None:
    bar = next(line for line in drawn(Plan(), 40).splitlines() if line.startswith("█"))
    assert set(bar) == set("█▓░▒▞╌·▚")


@given(st.lists(st.integers(1, 1 << 40), min_size=1, max_size=20), st.integers(20, 300))
def test_widths_share_out_every_cell(sizes: list[int], cells: int) -> None:
    given_out = widths(sizes, cells)
    assert sum(given_out) == cells
    assert min(given_out) >= 1
    for size, width in zip(sizes, given_out, strict=True):
        exact = size * (cells - len(sizes)) / sum(sizes)
        assert abs(width - 1 - exact) < 1.0001
