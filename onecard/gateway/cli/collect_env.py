"""`onecard collect-env`: the text that belongs into a bug report."""

import argparse
import json
from pathlib import Path

from onecard.gateway.cli.command import Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def run(args: argparse.Namespace) -> int:
    from onecard.engines.node.environment import describe
    from onecard.registry.sources.base import cache_root

    sections = describe() | {"registry": {"cache": _from_home(cache_root())}}
    if args.json:
        print(json.dumps(sections, indent=2))
        return 0
    for section, facts in sections.items():
        print(f"{section}:")
        for name, value in facts.items():
            print(f"  {name}: {value}")
    return 0


def _from_home(path: Path) -> str:
    """`~/...` where it can be: a home folder's name is often a person's."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


COMMAND = Command(
    summary="versions, torch build, CPU, cards: for a bug report",
    description="Print what a bug report should say about this machine and this installation.",
    epilog="""\
Nothing secret is printed: no names, keys, paths or addresses.

  onecard collect-env
""",
    add_arguments=add_arguments,
    run=run,
)
