"""What every scheme offers, what a download tells whoever watches it, and onecard's own cache folder.

`LocalSource` is the plainest: `/path/to/model.gguf`, `./folder`, weights that are here already.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from onecard.registry.plain_files import FileRefusedError, expanded, is_folder, is_there, regular_size
from onecard.registry.problems import did_you_mean, shown
from onecard.registry.spec import SourceError


class Progress(Protocol):
    """Follows one download after another: `start`, any number of `advance`, `done`.

    `start` may come again without a `done` before it when a download begins anew. Called from the thread
    that fetches; for some sources from several threads at once.
    """

    def start(self, name: str, total_bytes: int | None) -> None:
        """A download called `name` begins; `total_bytes` is None where the server doesn't say."""

    def advance(self, n: int) -> None:
        """`n` more bytes have arrived."""

    def done(self) -> None:
        """The download is complete, or has failed."""


class NoProgress(Progress):
    """Watches nothing."""


class Source(Protocol):
    """One place that weights come from. `sha256` is the registry's pin, in lower case, or None.

    Both methods return the file, or the folder in the Hugging Face layout, on this machine.
    """

    def check(self, sha256: str | None) -> None:
        """Raises SourceError for what can be told to be wrong without the network."""

    def fetch(self, sha256: str | None, progress: Progress) -> Path:
        """Brings the weights here unless they are. Raises SourceError."""

    def is_fetched(self, sha256: str | None) -> Path | None:
        """Where the weights are if they are complete on this machine; never touches the network."""


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(name: str, found: str, pinned: str | None) -> None:
    """Raises SourceError with both hashes where they differ."""
    if pinned is not None and found != pinned:
        raise SourceError(
            f"{name} has the sha256 {found}, but {pinned} is pinned; "
            f"don't use it unless you know why it changed, then pin the new one"
        )


def cache_root() -> Path:
    """`$ONECARD_CACHE`, by default ~/.cache/onecard."""
    configured = os.environ.get("ONECARD_CACHE")
    return expanded(configured) if configured else Path.home() / ".cache" / "onecard"


@contextmanager
def publishing(final: Path) -> Iterator[Path]:
    """A scratch folder beside `final`. What is put there under `final`'s name is moved to it in one step.

    Nothing is left behind where the body raises. A `final` that somebody else published first stays.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".incoming-", dir=final.parent))
    try:
        yield scratch
        try:
            os.rename(scratch / final.name, final)
        except OSError:
            if not final.exists():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@dataclass(frozen=True)
class LocalSource:
    path: Path

    def check(self, sha256: str | None) -> None:
        if not is_there(self.path):
            advice = _of_a_file(self.path) if self.path.suffix == ".gguf" else _of_a_folder(self.path)
            raise SourceError(f"there is no file or folder `{shown(str(self.path))}`{advice}")
        if is_folder(self.path):
            if sha256 is not None:
                raise SourceError(f"`sha256` pins one file, but `{self.path}` is a folder; remove `sha256`")
            return
        try:
            regular_size(self.path)
        except FileRefusedError as error:
            raise SourceError(str(error)) from None

    def fetch(self, sha256: str | None, progress: Progress) -> Path:
        self.check(sha256)
        if sha256 is not None:
            check_sha256(str(self.path), file_sha256(self.path), sha256)
        return self.path

    def is_fetched(self, sha256: str | None) -> Path | None:
        return self.path if is_there(self.path) else None


def _of_a_file(path: Path) -> str:
    """What to write instead of a .gguf file that isn't there."""
    hub = f"; for a file of the Hugging Face Hub write hf:org/name/{shown(path.name)}"
    if not is_folder(path.parent):
        return f", nor its folder; a relative path starts at the registry's folder{hub}"
    others = [file.name for file in path.parent.glob("*.gguf")]
    return f"{hub}.{near}" if (near := did_you_mean(path.name, others)) else hub


def _of_a_folder(path: Path) -> str:
    """A Hub's name without its scheme looks like a folder in a folder."""
    return "; for a model of the Hugging Face Hub write hf:org/name" if len(path.parts) > 1 else ""
