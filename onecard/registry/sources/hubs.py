"""`hf:org/name[/file.gguf][@revision]` and `modelscope:org/name[@revision]`: models of the two hubs.

Each hub's own package does the work in its own cache, so HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE
mean what they mean elsewhere, and other tools share the files. Pickles are never fetched.
"""

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from onecard.registry.sources.base import Progress, check_sha256, file_sha256
from onecard.registry.spec import SourceError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_PATTERNS: dict[str, Any] = {
    "allow_patterns": ["*.safetensors", "*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt"],
    "ignore_patterns": ["onnx/*", "openvino/*", "original/*", "consolidated*.safetensors"],
}
"""Fetched are weights, configs, chat templates and tokenizer files of every sort; not the same weights once
more, in layouts that onecard does not read."""


@dataclass(frozen=True)
class HuggingFaceSource:
    repo: str
    file: str | None = None
    revision: str | None = None

    def check(self, sha256: str | None) -> None:
        if sha256 is not None and self.file is None:
            raise SourceError(
                "`sha256` pins one file, not a Hub model; pin it by hf:org/name@revision (a commit)"
            )

    def fetch(self, sha256: str | None, progress: Progress) -> Path:
        path = self.is_fetched(sha256)
        if path is None:
            try:
                path = self._download(progress)
            except Exception as error:
                if (why := self._why(error)) is None:
                    raise
                raise SourceError(why) from error
        if self.file is not None and sha256 is not None:
            check_sha256(f"hf:{self.repo}/{self.file}", file_sha256(path), sha256)
        return path

    def is_fetched(self, sha256: str | None) -> Path | None:
        from huggingface_hub import snapshot_download, try_to_load_from_cache
        from huggingface_hub.errors import LocalEntryNotFoundError

        if self.file is not None:
            found = try_to_load_from_cache(self.repo, self.file, revision=self.revision)
            return Path(found) if isinstance(found, str) else None
        try:
            folder = snapshot_download(self.repo, revision=self.revision, local_files_only=True, **_PATTERNS)
        except LocalEntryNotFoundError:
            return None
        return Path(folder) if is_complete(Path(folder)) else None

    def _download(self, progress: Progress) -> Path:
        from huggingface_hub import hf_hub_download, snapshot_download

        files = self._files()
        progress.start(self.repo, sum(f.size or 0 for f in files) or None)
        try:
            bar = _bar_for(progress)
            if self.file is not None:
                return Path(hf_hub_download(self.repo, self.file, revision=self.revision, tqdm_class=bar))
            return Path(snapshot_download(self.repo, revision=self.revision, tqdm_class=bar, **_PATTERNS))
        finally:
            progress.done()

    def _files(self) -> "list[RepoSibling]":
        """What will be fetched. Raises SourceError where it would be no weights."""
        from huggingface_hub import HfApi
        from huggingface_hub.utils import filter_repo_objects

        info = HfApi().model_info(self.repo, revision=self.revision, files_metadata=True)
        siblings = list(info.siblings or [])
        if self.file is not None:
            return [f for f in siblings if f.rfilename == self.file]
        files = list(filter_repo_objects(siblings, key=lambda f: f.rfilename, **_PATTERNS))
        if not any(f.rfilename.endswith(".safetensors") for f in files):
            raise SourceError(self._no_weights([f.rfilename for f in siblings]))
        return files

    def _no_weights(self, names: list[str]) -> str:
        gguf = [name for name in names if name.endswith(".gguf")]
        if gguf:
            return f"hf:{self.repo} holds GGUF files; name one of them: " + ", ".join(
                f"hf:{self.repo}/{name}" for name in gguf
            )
        pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
        why = f" (its {pickles[0]} is a pickle, which could run code)" if pickles else ""
        return f"hf:{self.repo} holds no safetensors weights{why}; choose a repository or revision that does"

    def _why(self, error: Exception) -> str | None:
        """The Hub's errors as sentences that say what to do, None for an error that isn't the Hub's."""
        from huggingface_hub import errors

        name = f"hf:{self.repo}" + (f"@{self.revision}" if self.revision else "")
        match error:
            case errors.GatedRepoError():
                return f"{name} is gated: accept its terms on the Hub, then set HF_TOKEN"
            case errors.RepositoryNotFoundError():
                return f"{name} does not exist, or is private: check the name, or set HF_TOKEN"
            case errors.RevisionNotFoundError():
                return f"{name}: there is no such revision; check the part behind `@`"
            case errors.EntryNotFoundError() if not isinstance(error, errors.LocalEntryNotFoundError):
                return f"{name} has no file `{self.file}`; check its name on the Hub"
            case OSError() | errors.OfflineModeIsEnabled() | errors.LocalEntryNotFoundError():
                pass
            case _ if not type(error).__module__.startswith("http"):
                return None
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return (
            f"{name} is not in the Hub's cache and can't be fetched: {first.rstrip('.')}. Check the network "
            f"(HF_ENDPOINT, HF_HUB_OFFLINE), or write the path of a copy as `source`"
        )


def is_complete(folder: Path) -> bool:
    """Whether a folder has a config and every shard of its safetensors weights."""
    if not (folder / "config.json").is_file():
        return False
    indexes = list(folder.glob("*.safetensors.index.json"))
    if not indexes:
        return any(folder.glob("*.safetensors"))
    shards = {name for index in indexes for name in json.loads(index.read_text())["weight_map"].values()}
    return all((folder / shard).is_file() for shard in shards)


def _bar_for(progress: Progress) -> Any:
    """A bar class for huggingface_hub that draws nothing and tells `progress` of bytes.

    The Hub may count the same bytes in two bars (off the network, onto the disk), so the furthest one counts.
    """
    from huggingface_hub.utils import tqdm

    furthest = 0
    lock = Lock()

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts_bytes = kwargs.get("unit") == "B"
            self._seen = int(kwargs.get("initial") or 0)
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal furthest
            if self._counts_bytes:
                with lock:
                    self._seen += int(n or 0)
                    gained = max(0, self._seen - furthest)
                    furthest += gained
                progress.advance(gained)
            return super().update(n)

    return Bar


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
        return hub.snapshot_download(self.repo, revision=self.revision, **_PATTERNS, **options)
