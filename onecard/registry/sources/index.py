"""A package index's simple API: which files it has of a project.

PEP 691 (JSON) where the index speaks it, else PEP 503 (HTML); also a `file://` folder of HTML pages.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any
from urllib.parse import parse_qs, unquote, urldefrag, urljoin, urlsplit

from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import Version

from onecard.registry.sources.web import NotThereError, Web
from onecard.registry.spec import SourceError

_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_LARGEST_PAGE = 64 << 20


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
            body = response.read(_LARGEST_PAGE)
            kind = response.headers.get_content_type()
            base = response.url or url
    except NotThereError:
        return []
    try:
        entries = _json_entries(body) if kind.endswith("json") else _html_entries(body)
        found = [_file(base, *entry) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{page} is no page of the simple API: {error}; check the index URL") from error
    return [file for file in found if file is not None and _same_scheme(index_url, file.url)]


_Entry = tuple[str, str, str | None, int | None]
"""File name, URL (perhaps relative), sha256, size."""


def _json_entries(body: bytes) -> Iterator[_Entry]:
    for file in json.loads(body)["files"]:
        yield file["filename"], file["url"], file.get("hashes", {}).get("sha256"), file.get("size")


def _html_entries(body: bytes) -> Iterator[_Entry]:
    parser = _Anchors()
    parser.feed(body.decode("utf-8", "replace"))
    for href in parser.hrefs:
        url, fragment = urldefrag(urljoin(parser.base, href))
        name = unquote(urlsplit(url).path.rpartition("/")[2])
        yield name, url, next(iter(parse_qs(fragment).get("sha256", [])), None), None


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


def _file(base: str, name: str, url: str, sha256: Any, size: Any) -> IndexFile | None:
    """None for what is neither a wheel nor a readable source archive."""
    try:
        wheel = name.endswith(".whl")
        version = parse_wheel_filename(name)[1] if wheel else parse_sdist_filename(name)[1]
    except (InvalidWheelFilename, InvalidSdistFilename):
        return None
    pinned = str(sha256).lower() if sha256 and re.fullmatch(r"[0-9a-fA-F]{64}", str(sha256)) else None
    return IndexFile(name, urljoin(base, url), version, pinned, size if isinstance(size, int) else None)


def _same_scheme(index_url: str, url: str) -> bool:
    """Only an index on this machine may point to files on this machine."""
    return urlsplit(url).scheme in ("http", "https") or urlsplit(index_url).scheme == "file"
