"""How things look in the terminal: sizes, tables, download bars."""

import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Self

from rich import box, progress
from rich.console import Console
from rich.table import Table

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


class Bars:
    """Bars over bytes. Nothing is drawn before there is a bar; off a terminal each is drawn once.

    Whoever reports may do so from a thread of its own, and from several at once.
    """

    def __init__(self, console: Console) -> None:
        self._bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=None),
            progress.DownloadColumn(binary_units=True),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=console,
            expand=True,
        )
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars.tasks:
            self._bars.stop()

    def _add(self, name: str, total: int | None) -> progress.TaskID:
        self._bars.start()  # does nothing the second time
        return self._bars.add_task(name, total=total)


class DownloadBars(Bars):
    """A bar for each download; the `Progress` that `registry.sources.fetch` reports to."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._current: progress.TaskID | None = None

    def start(self, name: str, total_bytes: int | None) -> None:
        with self._lock:
            self.done()
            self._current = self._add(name, total_bytes)

    def advance(self, n: int) -> None:
        with self._lock:
            if self._current is not None:
                self._bars.advance(self._current, n)

    def done(self) -> None:
        with self._lock:
            if self._current is not None:
                self._bars.stop_task(self._current)
                self._current = None


class LoadBars(Bars):
    """A bar for each model whose weights are being loaded; the `LoadProgress` that engines report to."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._tasks: dict[str, progress.TaskID] = {}

    def __call__(self, model: str, done: int, total: int, unit: Literal["bytes", "graphs"] = "bytes") -> None:
        label = f"loading {model}" if unit == "bytes" else f"capturing {total} graphs of {model}"
        with self._lock:
            if label not in self._tasks:
                self._tasks[label] = self._add(label, total)
            self._bars.update(self._tasks[label], completed=done, total=total)


def fetch_all(models: Iterable[ModelSpec], console: Console) -> dict[str, Path]:
    """Model name -> local path, fetching what is not there yet. Raises `RegistryError`."""
    with DownloadBars(console) as bars:
        return {model.name: fetch(model, bars) for model in models}
