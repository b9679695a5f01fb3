"""Opening URLs as pip on this machine is set up: indexes, CA bundle, timeout, proxies, passwords in URLs.

Order of precedence, as pip's: environment variables, then pip's configuration files (site, user, system),
then PyPI. `ONECARD_INDEX_URL` comes before them all and, when set, is the only index.
"""

import base64
import configparser
import http.client
import os
import ssl
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onecard.registry.spec import SourceError

DEFAULT_INDEX = "https://pypi.org/simple"
_SECTIONS = ("global", "install", "download")


@dataclass(frozen=True)
class IndexConfig:
    """`urls` in the order to ask them; `cert`: a CA bundle, None for the system's; `timeout`: seconds."""

    urls: tuple[str, ...]
    cert: str | None = None
    timeout: float = 60.0


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
            kind = "capath" if config.cert.endswith("/") else "cafile"
            context.load_verify_locations(**{kind: config.cert})
        self._opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))
        self._logins = dict(filter(None, map(_login, config.urls)))

    def open(self, url: str, headers: Mapping[str, str] | None = None) -> Any:
        """The open response (a context manager). Raises NotThereError, UnreachableError or SourceError."""
        request = self._request(url, {"User-Agent": "onecard", **(headers or {})})
        try:
            return self._opener.open(request, timeout=self._timeout)
        except urllib.error.HTTPError as error:
            raise _said_no(request.full_url, error) from error
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, FileNotFoundError | IsADirectoryError):
                raise NotThereError(f"{request.full_url} does not exist") from error
            raise UnreachableError(f"{request.full_url} can't be reached: {reason}") from error
        except ValueError as error:  # where it leads to
            raise SourceError(f"{request.full_url} can't be opened: {error}") from error

    def _request(self, url: str, headers: Mapping[str, str]) -> urllib.request.Request:
        try:
            request = urllib.request.Request(_without_login(url), headers=dict(headers))
            login = self._logins.get(urllib.parse.urlsplit(request.full_url).netloc)
        except ValueError as error:
            raise SourceError(
                f"an index, or what it links to, is no URL: {error}; check the index URL"
            ) from error
        if login:
            request.add_unredirected_header("Authorization", login)
        return request


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
    login = urllib.parse.unquote(f"{parts.username}:{parts.password or ''}")
    token = base64.b64encode(login.encode()).decode()
    return urllib.parse.urlsplit(_without_login(url)).netloc, f"Basic {token}"


def _without_login(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def index_config() -> IndexConfig:
    """The settings of this process and machine."""
    pip = {**_file_settings(), **_env_settings()}
    own = os.environ.get("ONECARD_INDEX_URL")
    pips = [pip.get("index-url") or DEFAULT_INDEX, *pip.get("extra-index-url", "").split()]
    cert = pip.get("cert") or os.environ.get("SSL_CERT_FILE") or os.environ.get("REQUESTS_CA_BUNDLE")
    return IndexConfig(
        tuple(dict.fromkeys(url.rstrip("/") for url in (own.split() if own else pips))),
        cert if cert and Path(cert).exists() else None,
        _seconds(pip.get("timeout") or pip.get("default-timeout")),
    )


def _seconds(text: str | None) -> float:
    try:
        return max(1.0, float(text or 60))
    except ValueError:
        return 60.0


def _env_settings() -> dict[str, str]:
    return {
        name[4:].lower().replace("_", "-"): value
        for name, value in os.environ.items()
        if name.startswith("PIP_") and value
    }


def _file_settings() -> dict[str, str]:
    settings: dict[str, str] = {}
    for file in _config_files():
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue  # pip will say so; here the next file may still do
        for section in _SECTIONS:
            if parser.has_section(section):
                settings.update({k.lower().replace("_", "-"): v.strip() for k, v in parser.items(section)})
    return settings


def _config_files() -> list[Path]:
    """pip's configuration files, the weakest first."""
    chosen = os.environ.get("PIP_CONFIG_FILE")
    if chosen == os.devnull:
        return []
    home = Path.home()
    if sys.platform == "win32":
        files = [Path(os.environ.get("APPDATA", home)) / "pip" / "pip.ini", Path(sys.prefix) / "pip.ini"]
    else:
        folders = os.environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")
        system = [Path(folder) / "pip" / "pip.conf" for folder in folders if folder]
        own = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        mac = home / "Library" / "Application Support"
        if sys.platform == "darwin" and (mac / "pip").is_dir():
            own = mac
        user = [home / ".pip" / "pip.conf", own / "pip" / "pip.conf"]
        files = [*system, Path("/etc/pip.conf"), *user, Path(sys.prefix) / "pip.conf"]
    return [*files, Path(chosen)] if chosen else files
