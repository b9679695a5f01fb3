"""`hf:org/name[/file.gguf][@revision]` and `modelscope:org/name[@revision]`: models of the two hubs.

Each hub's own package does the work in its own cache, so HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE
mean what they mean elsewhere, and other tools share the files. Pickles are never fetched.
"""

import importlib
import logging
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from onecard.registry.plain_files import FileRefusedError, is_there, read_json
from onecard.registry.sources import listing
from onecard.registry.sources.base import Progress, check_sha256, file_sha256
from onecard.registry.spec import SourceError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

logger = logging.getLogger(__name__)

_PATTERNS: dict[str, Any] = {
    "allow_patterns": list(listing.ALLOWED),
    "ignore_patterns": list(listing.IGNORED),
}


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
                path = self._without_hub(why, error)
        if self.file is not None and sha256 is not None:
            check_sha256(f"hf:{self.repo}/{self.file}", file_sha256(path), sha256)
        return path

    def is_fetched(self, sha256: str | None) -> Path | None:
        if self.file is not None:
            return self._cached(self.file)
        folder = self._snapshot()
        if folder is None or not listing.is_complete(folder):
            return None
        names = _names_of(folder)
        return None if names is None or listing.lacking(folder, names) else folder

    def _cached(self, file: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repo, file, revision=self.revision)
        return Path(found) if isinstance(found, str) else None

    def _snapshot(self) -> Path | None:
        """What the Hub's cache has of the revision, were it a part."""
        config = self._cached("config.json")
        return None if config is None else config.parent

    def _download(self, progress: Progress) -> Path:
        from huggingface_hub import HfApi, hf_hub_download, snapshot_download

        # Weights that another tool has fetched stay; only what that one has left out is asked for.
        folder = None if self.file is not None else self._snapshot()
        revision = folder.name if folder is not None and listing.is_complete(folder) else self.revision
        info = HfApi().model_info(self.repo, revision=revision, files_metadata=True)
        sizes = self._sizes(info)
        progress.start(self.repo, sum(sizes.values()) or None)
        try:
            bar = _bar_for(progress)
            if self.file is not None:
                return Path(hf_hub_download(self.repo, self.file, revision=self.revision, tqdm_class=bar))
            folder = Path(snapshot_download(self.repo, revision=revision, tqdm_class=bar, **_PATTERNS))
        finally:
            progress.done()
        if folder.name == info.sha:
            listing.remember(_listing_of(folder), sizes)
        return folder

    def _sizes(self, info: "ModelInfo") -> dict[str, int]:
        """What will be fetched, with bytes. Raises SourceError where it would be no weights."""
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        if self.file is not None:
            return {name: size for name, size in sizes.items() if name == self.file}
        files = {name: sizes[name] for name in listing.wanted(sizes)}
        if not any(name.endswith(".safetensors") for name in files):
            raise SourceError(self._no_weights(list(sizes)))
        return files

    def _without_hub(self, why: str, error: Exception) -> Path:
        """What another tool has left in the cache, with a warning. Raises SourceError for too little."""
        folder = None if self.file is not None else self._snapshot()
        names = None if folder is None else _names_of(folder)
        if folder is None or (names is None and not listing.is_complete(folder)):
            raise SourceError(why) from error
        if names is None:
            logger.warning("%s (%s)", listing.unknown(f"hf:{self.repo}", folder), why)
            return folder
        absent = ", ".join(listing.lacking(folder, names))
        raise SourceError(f"{why}; in the Hub's cache it lacks {absent}") from error

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
            case errors.HfHubHTTPError() if (status := _status_of(error)) is not None:
                return f"{name} can't be fetched: the Hub answers {status}. Try again later, or {_A_COPY}"
            case OSError() | errors.OfflineModeIsEnabled() | errors.LocalEntryNotFoundError():
                pass
            case errors.HFValidationError():
                return f"{name} is no name of a Hub model: {error}"
            case _ if not type(error).__module__.startswith("http"):
                return None
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        here = "" if self._snapshot() is not None else "is not in the Hub's cache and "
        return (
            f"{name} {here}can't be fetched: {first.rstrip('.')}. Check the network "
            f"(HF_ENDPOINT, HF_HUB_OFFLINE), or {_A_COPY}"
        )


_A_COPY = "write the path of a copy as `source`"


def _status_of(error: Exception) -> str | None:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    return None if status is None else f"{status} {getattr(response, 'reason_phrase', '')}".rstrip()


def _listing_of(snapshot: Path) -> Path:
    """Where a snapshot's listing is kept: in its repository's folder, beside all snapshots."""
    return snapshot.parent.parent / "onecard" / f"{snapshot.name}.json"


def _names_of(snapshot: Path) -> list[str] | None:
    """The files of a snapshot's repository that onecard reads, by our listing or by the Hub's own; None:
    unknown."""
    names = listing.remembered(_listing_of(snapshot))
    if names is not None:
        return names
    hubs_own = snapshot.parent.parent / "trees" / f"{snapshot.name}.json"
    if not is_there(hubs_own):
        return None
    try:
        return listing.wanted(read_json(hubs_own)["files"])
    except (FileRefusedError, KeyError, TypeError):
        return None


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


_MODELSCOPE_LISTING = ".onecard.json"
"""In the folder itself, which ModelScope uses for every revision."""


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
            return self._without_hub(error)
        finally:
            progress.done()
        if not listing.is_complete(folder):
            raise SourceError(f"modelscope:{self.repo} holds no safetensors weights; choose another model")
        here = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
        whole = [file.as_posix() for file in here if not any(part.startswith(".") for part in file.parts)]
        listing.remember(folder / _MODELSCOPE_LISTING, listing.wanted(whole))
        return folder

    def is_fetched(self, sha256: str | None) -> Path | None:
        folder = self._here()
        names = None if folder is None else listing.remembered(folder / _MODELSCOPE_LISTING)
        return None if folder is None or names is None or listing.lacking(folder, names) else folder

    def _here(self) -> Path | None:
        try:
            folder = Path(self._snapshot(local_files_only=True))
        except (OSError, ValueError, RuntimeError, SourceError):
            return None
        return folder if listing.is_complete(folder) else None

    def _without_hub(self, error: Exception) -> Path:
        folder, why = self._here(), f"modelscope:{self.repo} can't be fetched: {error}"
        if folder is None or listing.remembered(folder / _MODELSCOPE_LISTING) is not None:
            raise SourceError(why) from error
        logger.warning("%s (%s)", listing.unknown(f"modelscope:{self.repo}", folder), why)
        return folder

    def _snapshot(self, **options: Any) -> str:
        try:
            hub = importlib.import_module("modelscope")
        except ImportError:
            raise SourceError(
                f"modelscope:{self.repo} needs the modelscope package; pip install 'onecard[modelscope]'"
            ) from None
        return hub.snapshot_download(self.repo, revision=self.revision, **_PATTERNS, **options)
