"""How things look in the terminal: sizes and tables."""

import sys
from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from onecard.gateway.cli.bars import DownloadBars
from onecard.registry.sources import fetch
from onecard.registry.spec import MemoryAmount, ModelSpec
from onecard.registry.units import format_bytes

PIPE_WIDTH = 200
"""Columns for what goes to a file or a pipe, where nothing is gained by folding."""


def stdout() -> Console:
    """Where results go; progress and notices go to stderr."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)


def human_amount(amount: MemoryAmount) -> str:
    """As the registry says it: '50 %' or '6GiB'."""
    if amount.nbytes is not None:
        return format_bytes(amount.nbytes)
    return f"{100 * (amount.fraction or 0):.0f} %"


def table(*columns: str, right: Iterable[str] = ()) -> Table:
    """An empty table; the columns in `right` hold numbers."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def fetch_all(models: Iterable[ModelSpec], console: Console) -> dict[str, Path]:
    """Model name -> local path, fetching what is not there yet. Raises `RegistryError`."""
    with DownloadBars(console) as bars:
        return {model.name: fetch(model, bars) for model in models}
