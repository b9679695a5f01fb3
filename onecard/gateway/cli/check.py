"""`onecard check`: is this registry right?"""

import argparse

from onecard.gateway.cli.command import Command, add_registry


def run(args: argparse.Namespace) -> int:
    from onecard.registry.loader import load_registry

    registry = load_registry(args.registry)
    models = ", ".join(f"{model.name} ({model.kind})" for model in registry.models)
    cards = ", ".join(f"{card.name} ({card.device})" for card in registry.cards)
    print(f"{args.registry}: right\n  models: {models}\n  cards:  {cards}")
    return 0


COMMAND = Command(
    summary="validate a registry; say what is wrong and where",
    description="Read a registry and check all of it. Nothing is fetched or loaded.",
    epilog="""\
exit code: 0 when the registry is right, 1 when not; every problem is named with file, line, key and what to
write instead.

  onecard check configs/demo.yaml
""",
    add_arguments=add_registry,
    run=run,
)
