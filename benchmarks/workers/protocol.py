"""The worker's side of `harness.workers`: commands in, answers out, nothing else on standard output."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

Answer = dict[str, Any]


def package_version(name: str) -> str:
    """`-` for a package that runs from its folder."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"


class Channel:
    """Owns standard output; what libraries print goes to standard error instead."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def send(self, answer: Answer) -> None:
        self._out.write(json.dumps(answer) + "\n")
        self._out.flush()

    def commands(self) -> Iterator[Answer]:
        """Blocks between commands; ends when the parent closes the pipe."""
        for line in sys.stdin:
            yield json.loads(line)


def serve(channel: Channel, hello: Answer, handle: Callable[[Answer], Answer]) -> None:
    """Say hello, then answer every command; what `handle` raises is told to the parent."""
    channel.send(hello)
    for command in channel.commands():
        try:
            channel.send(handle(command))
        except Exception as error:
            channel.send({"error": f"{type(error).__name__}: {error}"})
