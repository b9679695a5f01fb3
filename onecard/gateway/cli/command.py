"""What a subcommand is, and the arguments that several share."""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass

DEFAULT_URL = "http://127.0.0.1:8000"


class CommandError(Exception):
    """A command that can't do its work; the message is all the user sees, so it says what to do."""


@dataclass(frozen=True)
class Command:
    """One subcommand. `run` returns the exit code and raises `CommandError` or `RegistryError`."""

    summary: str
    """One line for `onecard --help`."""
    description: str
    epilog: str
    """Examples, and what else one needs to know to use it."""
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def add_registry(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "registry", metavar="REGISTRY", help="the registry file (YAML), e.g. configs/demo.yaml"
    )


def add_server(parser: argparse.ArgumentParser, *, admin: bool = False) -> None:
    """`--url` and `--api-key` of commands that talk to a running server, `admin` to its operator's routes."""
    variables = ("ONECARD_ADMIN_KEY", "ONECARD_API_KEY") if admin else ("ONECARD_API_KEY",)
    parser.add_argument(
        "--url",
        default=os.environ.get("ONECARD_URL", DEFAULT_URL),
        help=f"where the server listens (default: $ONECARD_URL, else {DEFAULT_URL})",
    )
    parser.add_argument(
        "--api-key",
        default=next((os.environ[name] for name in variables if os.environ.get(name)), ""),
        help=f"the server's {'admin ' * admin}key, if it wants one (default: ${variables[0]})",
    )
