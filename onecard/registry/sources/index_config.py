"""Which package indexes to ask, and how: as pip on this machine is set up.

Order of precedence, as pip's: environment variables, then pip's configuration files (site, user, system),
then PyPI. `ONECARD_INDEX_URL` comes before them all and, when set, is the only index.
"""

import configparser
import os
import sys
from dataclasses import dataclass
from pathlib import Path

DEFAULT_INDEX = "https://pypi.org/simple"
_SECTIONS = ("global", "install", "download")


@dataclass(frozen=True)
class IndexConfig:
    """`urls` in the order to ask them; `cert`: a CA bundle, None for the system's; `timeout`: seconds."""

    urls: tuple[str, ...]
    cert: str | None = None
    timeout: float = 60.0


def index_config() -> IndexConfig:
    """The settings of this process and machine."""
    pip = {**_file_settings(), **_env_settings()}
    own = os.environ.get("ONECARD_INDEX_URL")
    urls = (
        own.split()
        if own
        else [pip.get("index-url") or DEFAULT_INDEX, *pip.get("extra-index-url", "").split()]
    )
    cert = pip.get("cert") or os.environ.get("SSL_CERT_FILE") or os.environ.get("REQUESTS_CA_BUNDLE")
    return IndexConfig(
        tuple(dict.fromkeys(url.rstrip("/") for url in urls)),
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
        system = [
            Path(d) / "pip" / "pip.conf"
            for d in os.environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")
            if d
        ]
        user = [home / ".pip" / "pip.conf", _user_config(home) / "pip" / "pip.conf"]
        files = [*system, Path("/etc/pip.conf"), *user, Path(sys.prefix) / "pip.conf"]
    return [*files, Path(chosen)] if chosen else files


def _user_config(home: Path) -> Path:
    mac = home / "Library" / "Application Support"
    if sys.platform == "darwin" and (mac / "pip").is_dir():
        return mac
    return Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
