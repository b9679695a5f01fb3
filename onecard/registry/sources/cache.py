"""onecard's own cache folder. Whatever lies in it under its final name is complete."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_root() -> Path:
    """`$ONECARD_CACHE`, by default ~/.cache/onecard."""
    configured = os.environ.get("ONECARD_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "onecard"


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
