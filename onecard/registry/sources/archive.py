"""Reading members out of a wheel or a source archive, as data.

Nothing in the archive is installed, imported or run. Refused are members that would land outside the
target, links and other special files, and archives that unpack to far more than they are.
"""

import difflib
import gzip
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from stat import S_ISLNK
from typing import IO, Any, cast

from onecard.registry.spec import SourceError

_MAX_MEMBERS = 100_000
_MAX_RATIO = 100
_SLACK_BYTES = 64 << 20
_LARGEST_DIRECTORY = 32 << 20
"""Bytes of a zip's list of all members, which is read at once."""
_MOST_HEADERS = 4 << 20
"""Bytes of a tar's extended headers, all together: one alone may claim to have gigabytes."""
_TAR_BLOCK = 512
_ZIP_TAIL = 1 << 17
"""What is searched for the place of a zip's list."""
_MAX_GLOBAL_HEADERS = 1000
"""Of a tar, which are copied for each member; git writes one."""
_ENCRYPTED = 1


@dataclass(frozen=True)
class _Member:
    """A file in an archive; `regular` is False for links, devices and the like."""

    name: str
    size: int
    regular: bool
    open: Callable[[], IO[bytes] | None]
    encrypted: bool = False


def extract(archive: Path, name: str, member: str, target: Path) -> None:
    """Unpacks `member` of the archive (called `name` in errors) to `target`.

    `member` is a file's path in the archive, or a folder's with a `/` at the end: then everything below it
    goes below `target`. Raises SourceError; what is in `target` then is not to be used.
    """
    try:
        with _opened(archive) as found:
            members = _counted(found, archive.stat().st_size * _MAX_RATIO + _SLACK_BYTES, name)
            chosen = _chosen(members, member, name)
            need, free = sum(one.size for _, one in chosen), shutil.disk_usage(target.parent).free
            if need > free:
                raise SourceError(
                    f"{name} unpacks to {need} bytes, but the disk of {target.parent} has {free}; make room"
                )
            for relative, one in chosen:
                _write(one, target / relative if relative else target, name)
    except SourceError:
        raise
    except _RefusedError as refused:
        raise SourceError(f"{name} {refused}") from None
    except RecursionError as error:
        raise SourceError(f"{name} has more headers in a row than an archive of weights; not used") from error
    except Exception as error:  # for a damaged archive the libraries raise all sorts
        raise SourceError(f"{name} can't be unpacked: {str(error) or type(error).__name__}") from error


class _RefusedError(Exception):
    """What is wrong with an archive, to stand behind its name."""


class _Measured:
    """An archive's file, for as long as its headers are `listed`: those that a library reads in one piece and
    keeps, because they are larger than a `block`, are `most` bytes together."""

    def __init__(self, file: IO[bytes], block: int, most: int) -> None:
        self._file = file
        self._block = block
        self._left = most
        self.listed = True

    def read(self, size: int = -1) -> bytes:
        if self.listed and size > self._block:
            self._left -= size
            if self._left < 0:
                raise _RefusedError("has far larger headers than an archive of weights; not used")
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def _opened(path: Path) -> Iterator[Iterator[_Member]]:
    """The files of a zip or a gzipped tar archive, whichever it is, without the folders."""
    if zipfile.is_zipfile(path):
        with path.open("rb") as file:
            measured = _Measured(file, _ZIP_TAIL, _LARGEST_DIRECTORY)
            with zipfile.ZipFile(cast(IO[bytes], measured)) as wheel:
                measured.listed = False
                yield (_zipped(wheel, info) for info in wheel.infolist() if not info.is_dir())
    else:
        with gzip.open(path) as file:
            measured = _Measured(cast(IO[bytes], file), _TAR_BLOCK, _MOST_HEADERS)
            with tarfile.TarFile(fileobj=cast(IO[bytes], measured)) as sdist:
                yield _tarred(sdist, measured)


def _zipped(wheel: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    encrypted = bool(info.flag_bits & _ENCRYPTED)
    regular = not S_ISLNK(info.external_attr >> 16)
    return _Member(info.filename, info.file_size, regular, partial(wheel.open, info), encrypted)


def _tarred(sdist: tarfile.TarFile, measured: _Measured) -> Iterator[_Member]:
    for info in sdist:
        if len(sdist.pax_headers) > _MAX_GLOBAL_HEADERS:
            raise _RefusedError("has more headers than an archive of weights; not used")
        if info.size < 0:
            raise _RefusedError(f"holds `{info.name}` with a size below nothing; not used")
        if not info.isdir() or info.size:  # of every kind: what isn't taken is read over, and that takes time
            yield _Member(info.name, info.size, info.isreg(), partial(sdist.extractfile, info))
    measured.listed = False


def _counted(found: Iterable[_Member], limit: int, name: str) -> list[_Member]:
    """Every file. Raises SourceError for a bomb before it has gone off."""
    members: list[_Member] = []
    total = 0
    for member in found:
        total += member.size
        if len(members) >= _MAX_MEMBERS or total > limit:
            raise SourceError(f"{name} would unpack to far more than an archive of weights; not used")
        members.append(member)
    return members


def _chosen(members: list[_Member], wanted: str, name: str) -> list[tuple[str, _Member]]:
    """The members to unpack, each with its path below the target ("" for the target itself)."""
    if wanted.endswith("/"):
        chosen = [(m.name[len(wanted) :], m) for m in members if m.name.startswith(wanted)]
    else:
        chosen = [("", m) for m in members if m.name == wanted]
    if not chosen:
        raise SourceError(_missing(members, wanted, name))
    for relative, member in chosen:
        if not member.regular:
            raise SourceError(f"{name} holds `{member.name}` as a link or special file; not used")
        if member.encrypted:
            raise SourceError(
                f"{name} holds `{member.name}` encrypted; take an archive that needs no password"
            )
        if relative and not _stays_inside(relative):
            raise SourceError(f"{name} holds `{member.name}`, which would land outside its folder; not used")
    return chosen


def _stays_inside(relative: str) -> bool:
    parts = PurePosixPath(relative).parts
    return not relative.startswith("/") and ".." not in parts and not set(relative) & set("\\:\0")


def _missing(members: list[_Member], wanted: str, name: str) -> str:
    names = [m.name for m in members]
    if any(n.startswith(wanted + "/") for n in names):
        return f"`{wanted}` is a folder in {name}; write `{wanted}/`"
    if wanted.rstrip("/") in names:
        return f"`{wanted.rstrip('/')}` is a file in {name}; write it without the `/` at the end"
    folders = sorted(
        {f"{parent}/" for n in names for parent in PurePosixPath(n).parents if str(parent) != "."}
    )
    pool = folders if wanted.endswith("/") else names
    same_end = [n for n in pool if PurePosixPath(n).name == PurePosixPath(wanted).name]
    near = list(dict.fromkeys(same_end + difflib.get_close_matches(wanted, pool, n=5, cutoff=0.3)))
    near = near or [m.name for m in sorted(members, key=lambda m: -m.size)]
    return f"{name} has no `{wanted}`; it has {', '.join(f'`{n}`' for n in near[:5])}"


def _write(member: _Member, path: Path, name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    source = member.open()
    if source is None:
        raise SourceError(f"{name}: `{member.name}` can't be read")
    with source, path.open("xb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
    if path.stat().st_size != member.size:
        raise SourceError(f"{name}: `{member.name}` is shorter than the archive says; fetch it again")
