"""`onecard list`: what a registry declares."""

import argparse

from onecard.gateway.cli.command import Command, add_registry


def run(args: argparse.Namespace) -> int:
    from onecard.gateway.cli.pull import size_of
    from onecard.gateway.cli.terminal import human_amount, stdout, table
    from onecard.registry.loader import load_registry
    from onecard.registry.sources import is_fetched
    from onecard.registry.units import format_bytes

    registry = load_registry(args.registry)
    columns = ("model", "kind", "card", "floor", "burst", "size", "aliases", "source")
    rows = table(*columns, right=("floor", "burst", "size"))
    for model in registry.models:
        path = is_fetched(model)
        rows.add_row(
            model.name,
            model.kind,
            registry.card_of(model).name,
            human_amount(model.memory),
            human_amount(model.burst),
            format_bytes(size_of(path)) if path else "not fetched",
            ", ".join(model.aliases),
            model.source,
        )
    stdout().print(rows)
    return 0


COMMAND = Command(
    summary="list the models of a registry",
    description="List what a registry declares and what of it has been fetched; `onecard ps` says what runs.",
    epilog="""\
floor: the share of the card that is guaranteed; burst: what the model may hold while others leave it idle.

  onecard list configs/demo.yaml
""",
    add_arguments=add_registry,
    run=run,
)
