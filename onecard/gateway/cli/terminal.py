"""How things look in the terminal: sizes, tables, download bars."""

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from onecard.registry.sources import fetch
from onecard.registry.spec import MemoryAmount, ModelSpec

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def human_bytes(nbytes: float) -> str:
    """1536 -> '1.5 KiB'."""
    power = 0
    while abs(nbytes) >= 1024 and power < len(UNITS) - 1:
        nbytes /= 1024
        power += 1
    return f"{nbytes:.0f} {UNITS[power]}" if power == 0 else f"{nbytes:.1f} {UNITS[power]}"


def human_amount(amount: MemoryAmount) -> str:
    """As the registry says it: '50 %' or '6.0 GiB'."""
    return (
        human_bytes(amount.nbytes) if amount.nbytes is not None else f"{100 * (amount.fraction or 0):.0f} %"
    )


def table(*columns: str, right: Iterable[str] = ()) -> Table:
    """An empty table; the columns in `right` hold numbers."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def _bytes_bars(console: Console) -> Progress:
    """Bars over bytes. On something that is no terminal, rich draws each bar once, when it ends."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        expand=True,
    )


class DownloadBars:
    """A bar for each download; the `Progress` that `registry.sources.fetch` reports to.

    Sources may call from a thread of their own, and some from several threads at once.
    """

    def __init__(self, console: Console) -> None:
        self._bars = _bytes_bars(console)
        self._lock = threading.Lock()
        self._current: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def start(self, name: str, total_bytes: int | None) -> None:
        with self._lock:
            self._stop_current()
            self._current = self._bars.add_task(name, total=total_bytes)

    def advance(self, n: int) -> None:
        with self._lock:
            if self._current is not None:
                self._bars.advance(self._current, n)

    def done(self) -> None:
        with self._lock:
            self._stop_current()

    def _stop_current(self) -> None:
        if self._current is not None:
            self._bars.stop_task(self._current)
            self._current = None


class LoadBars:
    """A bar for each model whose weights are being loaded; the `LoadProgress` that engines report to."""

    def __init__(self, console: Console) -> None:
        self._bars = _bytes_bars(console)
        self._lock = threading.Lock()
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def __call__(self, model: str, done_bytes: int, total_bytes: int) -> None:
        with self._lock:
            if model not in self._tasks:
                self._tasks[model] = self._bars.add_task(f"loading {model}", total=total_bytes)
            self._bars.update(self._tasks[model], completed=done_bytes, total=total_bytes)


def fetch_all(models: Iterable[ModelSpec], console: Console) -> dict[str, Path]:
    """Model name -> local path, fetching what is not there yet. Raises `RegistryError`."""
    with DownloadBars(console) as bars:
        return {model.name: fetch(model, bars) for model in models}
