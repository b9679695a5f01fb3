"""Opening URLs with urllib: CA bundle, timeout, proxies, passwords in URLs, and errors in plain words."""

import base64
import http.client
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from onecard.registry.sources.index_config import IndexConfig
from onecard.registry.spec import SourceError

USER_AGENT = "onecard"


class UnreachableError(SourceError):
    """The server can't be reached or broke off; asking again may help."""


class NotThereError(SourceError):
    """The server says that there is no such page."""


class RangeRefusedError(SourceError):
    """The server has nothing from the byte on that was asked for."""


class Web:
    """Opens http, https and file URLs as `config` says."""

    def __init__(self, config: IndexConfig) -> None:
        self._timeout = config.timeout
        context = ssl.create_default_context()
        if config.cert:
            is_folder = config.cert.endswith("/")
            context.load_verify_locations(
                None if is_folder else config.cert, config.cert if is_folder else None
            )
        self._opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))
        self._logins = dict(filter(None, map(_login, config.urls)))

    def open(self, url: str, headers: Mapping[str, str] | None = None) -> Any:
        """The open response (a context manager). Raises NotThereError, UnreachableError or SourceError."""
        request = urllib.request.Request(
            _without_login(url), headers={"User-Agent": USER_AGENT, **(headers or {})}
        )
        login = self._logins.get(urllib.parse.urlsplit(request.full_url).netloc)
        if login:
            request.add_unredirected_header("Authorization", login)
        try:
            return self._opener.open(request, timeout=self._timeout)
        except urllib.error.HTTPError as error:
            raise _said_no(request.full_url, error) from error
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            if isinstance(getattr(error, "reason", error), FileNotFoundError | IsADirectoryError):
                raise NotThereError(f"{request.full_url} does not exist") from error
            raise UnreachableError(
                f"{request.full_url} can't be reached: {getattr(error, 'reason', error)}"
            ) from error


def _said_no(url: str, error: urllib.error.HTTPError) -> SourceError:
    if error.code in (404, 410):
        return NotThereError(f"{url} does not exist")
    if error.code in (401, 403):
        return SourceError(
            f"{url} refuses access ({error.code}); put a login into the index URL, or ask its owner"
        )
    if error.code == 416:
        return RangeRefusedError(f"{url} has no such range")
    kind = UnreachableError if error.code in (408, 429) or error.code >= 500 else SourceError
    return kind(f"{url} answers {error.code} {error.reason}")


def _login(url: str) -> tuple[str, str] | None:
    """Host and Authorization header for a URL with a login in it."""
    parts = urllib.parse.urlsplit(url)
    if parts.username is None:
        return None
    user, password = (urllib.parse.unquote(p or "") for p in (parts.username, parts.password))
    token = base64.b64encode(f"{user}:{password}".encode()).decode()
    return urllib.parse.urlsplit(_without_login(url)).netloc, f"Basic {token}"


def _without_login(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
