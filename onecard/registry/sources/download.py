"""One archive, streamed to disk, checked, and resumed where the connection broke."""

import http.client
import time
from pathlib import Path
from typing import Any, BinaryIO

from onecard.registry.sources.base import Progress, check_sha256, file_sha256
from onecard.registry.sources.index import IndexFile
from onecard.registry.sources.web import RangeRefusedError, UnreachableError, Web
from onecard.registry.spec import SourceError

_CHUNK = 1 << 18
_ATTEMPTS = 4
_FIRST_PAUSE_S = 0.1


def download(web: Web, file: IndexFile, part: Path, pinned: str | None, progress: Progress) -> None:
    """Fills `part` with `file`, whose hash is then known to be right. Raises SourceError.

    What an earlier call left in `part` is gone on with, if a hash will tell whether the whole is right.
    After a failure `part` stays for the next call, unless its content is wrong.
    """
    if file.sha256 is None and pinned is None:
        part.unlink(missing_ok=True)
    progress.start(file.name, file.size)
    try:
        progress.advance(_size(part))
        _until_complete(web, file, part, progress)
    finally:
        progress.done()
    try:
        found = file_sha256(part)
        check_sha256(f"{file.name}, by the index that offers it,", found, file.sha256)
        check_sha256(file.name, found, pinned)
    except SourceError:
        part.unlink()
        raise


def _until_complete(web: Web, file: IndexFile, part: Path, progress: Progress) -> None:
    """Asks again after a broken connection; only attempts that bring nothing count as failures."""
    failures = 0
    while file.size is None or _size(part) != file.size:
        have = _size(part)
        try:
            _stream(web, file, part, have, progress)
            return
        except RangeRefusedError:
            part.unlink()
            progress.start(file.name, file.size)
        except UnreachableError:
            failures = 1 if _size(part) > have else failures + 1
            if failures >= _ATTEMPTS:
                raise
            time.sleep(_FIRST_PAUSE_S * 2**failures)


def _stream(web: Web, file: IndexFile, part: Path, have: int, progress: Progress) -> None:
    """Adds what is missing from `have` bytes on; from a server that can't do ranges, all of it again."""
    with web.open(file.url, {"Range": f"bytes={have}-"} if have else None) as response:
        resumed = have > 0 and getattr(response, "status", None) == 206
        if have and not resumed:
            progress.start(file.name, file.size)
        length = response.headers.get("Content-Length")
        with part.open("ab" if resumed else "wb") as out:
            got = _copy(file, response, out, have if resumed else 0, progress)
    if length is not None and got < int(length):
        raise UnreachableError(f"{file.url} broke off after {got} of {length} bytes")


def _copy(file: IndexFile, response: Any, out: BinaryIO, before: int, progress: Progress) -> int:
    """Bytes copied. Raises SourceError where more come than the index says the file has."""
    got = 0
    while chunk := _read(file, response):
        got += len(chunk)
        if file.size is not None and before + got > file.size:
            raise SourceError(
                f"{file.url} is longer than the {file.size} bytes that its index says; not used"
            )
        out.write(chunk)
        progress.advance(len(chunk))
    return got


def _read(file: IndexFile, response: Any) -> bytes:
    try:
        return response.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(f"{file.url} broke off: {error or type(error).__name__}") from error


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
