"""Where weights come from."""

from pathlib import Path

from onecard.registry.sources.progress import NoProgress, Progress
from onecard.registry.spec import ModelSpec

__all__ = ["NoProgress", "Progress", "fetch", "is_fetched", "parse_source"]


def parse_source(text: str) -> object:
    raise NotImplementedError


def fetch(model: ModelSpec, progress: Progress) -> Path:
    raise NotImplementedError


def is_fetched(model: ModelSpec) -> Path | None:
    raise NotImplementedError
