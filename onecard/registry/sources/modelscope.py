"""`modelscope:org/name[@revision]`: a model of ModelScope, through its own optional package."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onecard.registry.sources.base import Progress
from onecard.registry.sources.hugging_face import ALLOW, IGNORE, is_complete
from onecard.registry.spec import SourceError


@dataclass(frozen=True)
class ModelScopeSource:
    repo: str
    revision: str | None = None

    def check(self, sha256: str | None) -> None:
        if sha256 is not None:
            raise SourceError(
                "`sha256` pins one file, not a ModelScope model; pin it by modelscope:org/name@revision"
            )

    def fetch(self, sha256: str | None, progress: Progress) -> Path:
        found = self.is_fetched(sha256)
        if found is not None:
            return found
        progress.start(self.repo, None)
        try:
            folder = Path(self._snapshot())
        except (OSError, ValueError, RuntimeError) as error:
            raise SourceError(f"modelscope:{self.repo} can't be fetched: {error}") from error
        finally:
            progress.done()
        if not is_complete(folder):
            raise SourceError(f"modelscope:{self.repo} holds no safetensors weights; choose another model")
        return folder

    def is_fetched(self, sha256: str | None) -> Path | None:
        try:
            folder = Path(self._snapshot(local_files_only=True))
        except (OSError, ValueError, RuntimeError, SourceError):
            return None
        return folder if is_complete(folder) else None

    def _snapshot(self, **options: Any) -> str:
        try:
            hub = importlib.import_module("modelscope")
        except ImportError:
            raise SourceError(
                f"modelscope:{self.repo} needs the modelscope package; pip install 'onecard[modelscope]'"
            ) from None
        return hub.snapshot_download(
            self.repo, revision=self.revision, allow_patterns=ALLOW, ignore_patterns=IGNORE, **options
        )
