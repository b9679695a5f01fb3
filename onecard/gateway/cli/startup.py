"""What a start says: one clear sentence where it fails, else where, what, and a line to try."""

import contextlib
import gc
import json
import os
import shlex
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onecard.engines.api import ModelInfo
from onecard.engines.api.errors import explain as own_words
from onecard.engines.api.errors import is_ours
from onecard.gateway.cli.command import CommandError
from onecard.gateway.loading import LoadingNode
from onecard.registry.sources import fetch
from onecard.registry.sources.base import Progress
from onecard.registry.spec import ModelSpec, RegistryError, ServerSpec

if TYPE_CHECKING:
    from rich.console import Console

DEBUG_VARIABLE = "ONECARD_DEBUG"


@contextlib.contextmanager
def refusals(what: str) -> Iterator[None]:
    """Turn whatever goes wrong inside into one sentence; `ONECARD_DEBUG=1` lets the traceback through.

    Engines raise errors of many kinds here (a plan that can't fit, a broken checkpoint, a missing file); for
    the person at the terminal they are all the same: the message says what to do.
    """
    try:
        yield
    except (CommandError, RegistryError):
        raise
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        raise CommandError(f"{what}: {explain(error)}") from error


def explain(error: Exception) -> str:
    """What went wrong, and for an error that isn't ours where its traceback can be had."""
    hint = "" if is_ours(error) else f" (set {DEBUG_VARIABLE}=1 for the traceback)"
    return f"{own_words(error)}{hint}"


class _Watched:
    """A `Progress` for two: who draws bars, and who answers meanwhile."""

    def __init__(self, bars: Progress, loading: LoadingNode, model: str) -> None:
        self._bars, self._loading, self._model = bars, loading, model

    def start(self, name: str, total_bytes: int | None) -> None:
        self._bars.start(name, total_bytes)
        self._loading.turn(self._model, "fetching", total_bytes or 0)

    def advance(self, n: int) -> None:
        self._bars.advance(n)
        self._loading.advance(self._model, n)

    def done(self) -> None:
        self._bars.done()


def fetch_watched(models: Iterable[ModelSpec], loading: LoadingNode, console: "Console") -> dict[str, Path]:
    """Model name -> local path, fetching what is not there yet. Raises `RegistryError`."""
    from onecard.gateway.cli.terminal import DownloadBars

    paths = {}
    with DownloadBars(console) as bars:
        for model in models:
            loading.turn(model.name, "fetching")
            paths[model.name] = fetch(model, _Watched(bars, loading, model.name))
            loading.turn(model.name, "waiting")
    return paths


SWITCH_INTERVAL_SECONDS = 0.0002


def settle_heap() -> None:
    """What has been imported is there to stay: the garbage collector needn't look through its 200,000 objects
    each time that clients have made some of theirs, which holds everybody up for some 70 ms."""
    gc.collect()
    gc.freeze()


def settle_threads() -> None:
    """What a server's threads need to live together. To be called before torch is imported.

    GNU OpenMP spins for milliseconds at every barrier by default: on a machine that does anything else
    beside, a step then waits for threads that have lost their core. An idle machine loses nothing measurable.
    And a device loop asks for the GIL after every torch operation: while the event loop writes to its
    clients, it would get it back only after Python's 5 ms.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)


MOST_FILES = 65536


def allow_many_files() -> None:
    """Raise the process's own limit of open files as far as the system lets it: each connection is one.

    The usual 1024 is there for programs that call `select`, of which this isn't one.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to `host:port`, not listening yet: a port in use is found before weights are loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise CommandError(
            f"{host!r} is no address to listen on ({error.strerror}); try --host 127.0.0.1"
        ) from None
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(address)
    except OSError as error:
        made.close()
        raise CommandError(
            f"can't listen on {host}:{port} ({os.strerror(error.errno or 0)}). "
            "Is another server running there? Choose another port with --port."
        ) from None
    return made


ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Addresses to listen on, and the ones to reach them at."""


def base_url(host: str, port: int) -> str:
    """Where a client on this machine reaches a server that listens on `host:port`."""
    host = ANYWHERE.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def announcement(server: ServerSpec, models: Sequence[ModelInfo], port: int) -> str:
    """Several lines for the terminal; `port` is the real one where the registry asked for any."""
    url = base_url(server.host, port)
    names = ", ".join(model.name for model in models)
    return f"ready on {url}: {names}\ntry it:\n  {curl(server, models, url)}"


def curl(server: ServerSpec, models: Sequence[ModelInfo], url: str) -> str:
    """A command that asks something: the first route with an example whose task a model does."""
    from onecard.gateway.routes.table import ROUTES

    asked = (
        (row.path, {"model": model.name, **row.example})
        for row in ROUTES.rows
        for model in models
        if row.example is not None and row.task in model.tasks
    )
    path, body = next(asked, ("/tokenize", {"model": models[0].name, "prompt": "Paris"}))
    headers = "-H 'Content-Type: application/json'"
    if server.api_keys:
        headers += ' -H "Authorization: Bearer $ONECARD_API_KEY"'
    return f"curl {url}{path} {headers} -d {shlex.quote(json.dumps(body, ensure_ascii=False))}"
