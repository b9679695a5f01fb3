"""Failing to start with one clear sentence."""

import contextlib
import os
import socket
import sys
from collections.abc import Iterator

from onecard.engines.api.errors import explain as own_words
from onecard.engines.api.errors import is_ours
from onecard.gateway.cli.command import CommandError
from onecard.registry.spec import RegistryError

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


SWITCH_INTERVAL_SECONDS = 0.0002


def settle_threads() -> None:
    """What a server's threads need to live together. To be called before torch is imported.

    GNU OpenMP spins for milliseconds at every barrier by default: on a machine that does anything else
    beside, a step then waits for threads that have lost their core. An idle machine loses nothing measurable.
    And a device loop asks for the GIL after every torch operation: while the event loop writes to its
    clients, it would get it back only after Python's 5 ms.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)


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
