"""`/path/to/model.gguf`, `./folder`: weights that are here already."""

from dataclasses import dataclass
from pathlib import Path

from onecard.registry.problems import did_you_mean
from onecard.registry.sources.base import Progress, check_sha256, file_sha256
from onecard.registry.spec import SourceError


@dataclass(frozen=True)
class LocalSource:
    path: Path

    def check(self, sha256: str | None) -> None:
        if not self.path.exists():
            advice = _of_a_file(self.path) if self.path.suffix == ".gguf" else _of_a_folder(self.path)
            raise SourceError(f"there is no file or folder `{self.path}`{advice}")
        if sha256 is not None and self.path.is_dir():
            raise SourceError(f"`sha256` pins one file, but `{self.path}` is a folder; remove `sha256`")

    def fetch(self, sha256: str | None, progress: Progress) -> Path:
        self.check(sha256)
        if sha256 is not None:
            check_sha256(str(self.path), file_sha256(self.path), sha256)
        return self.path

    def is_fetched(self, sha256: str | None) -> Path | None:
        return self.path if self.path.exists() else None


def _of_a_file(path: Path) -> str:
    """What to write instead of a .gguf file that isn't there."""
    hub = f"; for a file of the Hugging Face Hub write hf:org/name/{path.name}"
    if not path.parent.is_dir():
        return f", nor its folder; a relative path starts at the registry's folder{hub}"
    others = [file.name for file in path.parent.glob("*.gguf")]
    return f"{hub}.{near}" if (near := did_you_mean(path.name, others)) else hub


def _of_a_folder(path: Path) -> str:
    """A Hub's name without its scheme looks like a folder in a folder."""
    parts = path.parts
    return f"; for a model of the Hugging Face Hub write hf:{'/'.join(parts[-2:])}" if len(parts) > 1 else ""
