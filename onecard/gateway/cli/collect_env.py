"""`onecard collect-env`: the text that belongs into a bug report."""

import argparse
import json
import os

from onecard.gateway.cli.command import Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def run(args: argparse.Namespace) -> int:
    from onecard.engines.node.environment import describe

    cache = "where ONECARD_CACHE says" if os.environ.get("ONECARD_CACHE") else "~/.cache/onecard"
    sections = describe() | {"registry": {"cache": cache}}
    if args.json:
        print(json.dumps(sections, indent=2))
        return 0
    for section, facts in sections.items():
        print(f"{section}:")
        for name, value in facts.items():
            print(f"  {name}: {value}")
    return 0


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
