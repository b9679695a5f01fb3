"""A package index's simple API: which files it has of a project, and one of them brought here.

PEP 691 (JSON) where the index speaks it, else PEP 503 (HTML); also a `file://` folder of HTML pages. A file
is streamed to disk, checked, and resumed where the connection broke.
"""

import http.client
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, unquote, urldefrag, urljoin, urlsplit

from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import Version

from onecard.registry.sources.base import Progress, check_sha256, file_sha256
from onecard.registry.sources.web import NotThereError, RangeRefusedError, UnreachableError, Web
from onecard.registry.spec import SourceError

_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_LARGEST_PAGE = 64 << 20
_CHUNK = 1 << 18
_ATTEMPTS = 4
_FIRST_PAUSE_S = 0.1


@dataclass(frozen=True)
class IndexFile:
    """One archive of a project. `sha256` and `size` are None where the index doesn't say."""

    name: str
    url: str
    version: Version
    sha256: str | None = None
    size: int | None = None

    @property
    def rank(self) -> tuple[int, str]:
        """The lower, the better to read data from: pure wheels, other wheels, source archives."""
        if self.name.endswith("-none-any.whl"):
            return 0, self.name
        return (1 if self.name.endswith(".whl") else 2), self.name


def project_files(web: Web, index_url: str, project: str) -> list[IndexFile]:
    """The archives that an index has of `project`, none where it doesn't know it. Raises SourceError."""
    page = f"{index_url}/{canonicalize_name(project)}/"
    url = page + "index.html" if page.startswith("file:") else page
    try:
        with web.open(url, {"Accept": _ACCEPT}) as response:
            body = response.read(_LARGEST_PAGE + 1)
            kind = response.headers.get_content_type()
            base = response.url or url
    except NotThereError:
        return []
    if len(body) > _LARGEST_PAGE:
        raise SourceError(f"{page} is larger than {_LARGEST_PAGE} bytes; check the index URL")
    try:
        entries = json.loads(body)["files"] if kind.endswith("json") else _html_entries(body)
        found = [_file(base, entry) for entry in entries]
        return [file for file in found if file is not None and _same_scheme(index_url, file.url)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(f"{page} is no page of the simple API: {error}; check the index URL") from error


def _html_entries(body: bytes) -> Iterator[dict[str, Any]]:
    """The links of a page, as its JSON would tell them."""
    parser = _Anchors()
    parser.feed(body.decode("utf-8", "replace"))
    for href in parser.hrefs:
        url, fragment = urldefrag(urljoin(parser.base, href))
        name = unquote(urlsplit(url).path.rpartition("/")[2])
        yield {"filename": name, "url": url, "hashes": dict(parse_qsl(fragment))}


class _Anchors(HTMLParser):
    """The links of a page, and its <base>."""

    def __init__(self) -> None:
        super().__init__()
        self.base = ""
        self.hrefs: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if tag == "base" and href:
            self.base = href
        elif tag == "a" and href:
            self.hrefs.append(href)


def _file(base: str, entry: dict[str, Any]) -> IndexFile | None:
    """None for what is neither a wheel nor a readable source archive."""
    name, sha256 = entry["filename"], entry.get("hashes", {}).get("sha256")
    size = entry.get("size") if isinstance(entry.get("size"), int) else None
    try:
        parse = parse_wheel_filename if name.endswith(".whl") else parse_sdist_filename
        version = parse(name)[1]
    except (InvalidWheelFilename, InvalidSdistFilename):
        return None
    pinned = str(sha256).lower() if sha256 and re.fullmatch(r"[0-9a-fA-F]{64}", str(sha256)) else None
    return IndexFile(name, urljoin(base, entry["url"]), version, pinned, size)


def _same_scheme(index_url: str, url: str) -> bool:
    """Only an index on this machine may point to files on this machine."""
    return urlsplit(url).scheme in ("http", "https") or urlsplit(index_url).scheme == "file"


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
        check_sha256(file.name, found, pinned)
        if file.sha256 not in (None, found):
            raise SourceError(
                f"{file.name} has the sha256 {found}, but the index that offers it says {file.sha256}; it is "
                f"damaged or another file: fetch it again, or ask whoever runs the index"
            )
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
        except UnreachableError:  # what has come is right, as far as it goes
            failures = 1 if _size(part) > have else failures + 1
            if failures >= _ATTEMPTS:
                raise
            time.sleep(_FIRST_PAUSE_S * 2**failures)
        except (SourceError, OSError):  # too long; or a full disk, which it would keep full
            part.unlink(missing_ok=True)
            raise


def _stream(web: Web, file: IndexFile, part: Path, have: int, progress: Progress) -> None:
    """Adds what is missing from `have` bytes on; from a server that can't do ranges, all of it again."""
    with web.open(file.url, {"Range": f"bytes={have}-"} if have else None) as response:
        resumed = have > 0 and getattr(response, "status", None) == 206
        if have and not resumed:
            progress.start(file.name, file.size)
        length = response.headers.get("Content-Length")
        with part.open("ab" if resumed else "wb") as out:
            got = _copy(file, response, out, have if resumed else 0, progress)
    if length is not None and length.isdecimal() and got < int(length):
        raise UnreachableError(f"{file.url} broke off after {got} of {length} bytes")


def _copy(file: IndexFile, response: Any, out: BinaryIO, before: int, progress: Progress) -> int:
    """Bytes copied. Raises SourceError where more come than the index says the file has."""
    got = 0
    while True:
        try:
            chunk = response.read(_CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(f"{file.url} broke off: {error or type(error).__name__}") from error
        if not chunk:
            return got
        got += len(chunk)
        if file.size is not None and before + got > file.size:
            raise SourceError(
                f"{file.url} is longer than the {file.size} bytes that its index says; not used"
            )
        out.write(chunk)
        progress.advance(len(chunk))


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
