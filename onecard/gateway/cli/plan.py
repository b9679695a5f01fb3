"""`onecard plan`: who gets which part of each card."""

import argparse
import json

from onecard.gateway.cli.command import Command, add_registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_registry(parser)
    parser.add_argument("--json", action="store_true", help="the plan as JSON, for machines")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from onecard.gateway.cli.plan_view import print_plans
    from onecard.gateway.cli.startup import refusals
    from onecard.gateway.cli.terminal import fetch_all, stdout
    from onecard.registry.loader import load_registry

    registry = load_registry(args.registry)
    paths = fetch_all(registry.models, Console(stderr=True))
    from onecard.engines.node.factory import plan_registry  # seconds of imports: not before the first bars

    with refusals("can't plan"):
        plans = plan_registry(registry, paths)
    if args.json:
        print(json.dumps([plan.as_dict() for plan in plans], indent=2))
    else:
        print_plans(stdout(), plans)
    return 0


COMMAND = Command(
    summary="the memory plan of a registry: who gets which part of each card",
    description="Work out who gets which part of each card, and draw it. No weights are loaded, but what is\n"
    "not there yet is fetched: the sizes stand in the files.",
    epilog="""\
exit code: 0 when everything fits, 1 when not (the numbers say by how much).

  onecard plan configs/demo.yaml
  onecard plan configs/demo.yaml --json | jq '.[0].arena_bytes'
""",
    add_arguments=add_arguments,
    run=run,
)
