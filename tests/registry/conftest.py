"""A package index on this machine, and registry files to load."""

import threading
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from package_index import Index, handler

from onecard.registry.loader import load_registry
from onecard.registry.spec import Registry, RegistryError


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Index]:
    """An index that onecard is set to use, with an empty cache."""
    served = Index()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(served))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}/simple"
    monkeypatch.setenv("ONECARD_INDEX_URL", served.url)
    monkeypatch.setenv("ONECARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a registry file."""

    def write_registry(text: str) -> Path:
        path = tmp_path / "registry.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_registry


@pytest.fixture
def load(write: Callable[[str], Path]) -> Callable[[str], Registry]:
    return lambda text: load_registry(write(text))


@pytest.fixture
def mistakes(write: Callable[[str], Path]) -> Callable[[str], list[str]]:
    """What is wrong with a registry, one `line:column: key: message` each."""

    def problems(text: str) -> list[str]:
        path = write(text)
        with pytest.raises(RegistryError) as caught:
            load_registry(path)
        lines = str(caught.value).splitlines()
        own = [line for line in lines if line.startswith(f"{path}:")]
        assert len(own) == len(lines) - (len(lines) > 1), "every problem names the file"
        return [line.removeprefix(f"{path}:") for line in own]

    return problems
