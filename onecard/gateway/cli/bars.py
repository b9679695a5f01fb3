"""What is on its way: bars on a terminal, lines elsewhere; and log lines, which keep clear of the bars."""

import logging
import threading
from typing import Literal, Self

from rich import progress
from rich.console import Console
from rich.table import Column
from rich.text import Text

from onecard.registry.units import counted, format_bytes

LOG_FORMAT = "%(levelname)s %(asctime)s %(message)s"

Unit = Literal["bytes", "graphs"]


def say(console: Console, line: str) -> None:
    """`line` as it is: a terminal folds what is too long, a file holds one line."""
    console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)


class LogHandler(logging.Handler):
    """Writes each record whole, above whatever bars `console` draws meanwhile."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self.setFormatter(logging.Formatter(LOG_FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            say(self._console, self.format(record))
        except Exception:
            self.handleError(record)


class _Name(progress.ProgressColumn):
    """Gives way to the numbers where the terminal is narrow."""

    def render(self, task: progress.Task) -> Text:
        return Text(task.description, no_wrap=True, overflow="ellipsis")


class _Amount(progress.DownloadColumn):
    """Of bytes or of whatever else the task counts."""

    def render(self, task: progress.Task) -> Text:
        if task.fields["unit"] == "bytes":
            return super().render(task)
        return Text(f"{task.completed:.0f}/{task.total or 0:.0f}", "progress.download")


class _Speed(progress.TransferSpeedColumn):
    def render(self, task: progress.Task) -> Text:
        return super().render(task) if task.fields["unit"] == "bytes" else Text()


class Bars:
    """Nothing is drawn before there is a bar. Off a terminal, and once the block has been left, each is a
    line when it begins and when it ends.

    Whoever reports may do so from a thread of its own, and from several at once.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._draws = console.is_terminal
        self._bars = progress.Progress(
            _Name(),
            progress.BarColumn(bar_width=14, table_column=Column(no_wrap=True)),
            _Amount(binary_units=True, table_column=Column(no_wrap=True)),
            _Speed(table_column=Column(no_wrap=True)),
            progress.TimeRemainingColumn(
                compact=True, elapsed_when_finished=True, table_column=Column(no_wrap=True)
            ),
            console=console,
        )
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars.live.is_started:
            self._bars.stop()
        self._draws = False

    def _add(self, name: str, total: int | None, unit: Unit = "bytes") -> progress.TaskID:
        if self._draws:
            self._bars.start()  # does nothing the second time
        else:
            size = f" ({format_bytes(total)})" if total is not None and unit == "bytes" else ""
            say(self._console, f"{name}{size} ...")
        return self._bars.add_task(name, total=total, unit=unit)

    def _end(self, task: progress.TaskID) -> None:
        """The task is done, or given up: what comes next tells which."""
        self._bars.stop_task(task)
        shown = next(one for one in self._bars.tasks if one.id == task)
        if not self._draws and (shown.finished or shown.total is None):
            say(self._console, f"{shown.description}: done in {shown.elapsed or 0:.1f} s")


class DownloadBars(Bars):
    """A bar for each download; the `Progress` that `registry.sources.fetch` reports to."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._current: progress.TaskID | None = None

    def start(self, name: str, total_bytes: int | None) -> None:
        with self._lock:
            self.done()
            self._current = self._add(f"fetching {name}", total_bytes)

    def advance(self, n: int) -> None:
        with self._lock:
            if self._current is not None:
                self._bars.advance(self._current, n)

    def done(self) -> None:
        with self._lock:
            if self._current is not None:
                self._end(self._current)
                self._current = None


class LoadBars(Bars):
    """A bar for each model whose weights are being loaded; the `LoadProgress` that engines report to."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._tasks: dict[str, progress.TaskID] = {}

    def __call__(self, model: str, done: int, total: int, unit: Unit = "bytes") -> None:
        label = f"loading {model}" if unit == "bytes" else f"capturing {counted(total, 'graph')} of {model}"
        with self._lock:
            task = self._task(label)
            if task is None or (task.finished and done < total):  # a model that wakes is loaded once more
                if task is not None:
                    self._bars.remove_task(task.id)
                self._tasks[label] = self._add(label, total, unit)
                task = self._task(label)
            assert task is not None
            ended = task.finished
            self._bars.update(task.id, completed=done, total=total)
            if task.finished and not ended:
                self._end(task.id)

    def _task(self, label: str) -> progress.Task | None:
        known = self._tasks.get(label)
        return next((task for task in self._bars.tasks if task.id == known), None)
