"""`onecard check`, `list`, `pull` and `plan`: what a registry file says, without a server."""

import argparse
import json
from pathlib import Path

from onecard.gateway.cli.command import Command, add_registry
from onecard.registry.units import format_bytes


def check(args: argparse.Namespace) -> int:
    from onecard.registry.loader import load_registry
    from onecard.registry.sources import is_fetched
    from onecard.registry.spec import RegistryError

    registry = load_registry(args.registry)
    here = {model.name: path for model in registry.models if (path := is_fetched(model)) is not None}
    if here:
        from onecard.engines.node.factory import file_problems  # seconds of imports, for those who have files

        if problems := file_problems(registry, here):
            raise RegistryError("\n".join(f"{args.registry}: {problem}" for problem in problems))
    models = ", ".join(f"{model.name} ({model.kind})" for model in registry.models)
    cards = ", ".join(f"{card.name} ({card.device})" for card in registry.cards)
    print(f"{args.registry}: right\n  models: {models}\n  cards:  {cards}")
    if unseen := [model.name for model in registry.models if model.name not in here]:
        print(f"  not fetched, so their files are not checked: {', '.join(unseen)}")
    return 0


def list_models(args: argparse.Namespace) -> int:
    from onecard.gateway.cli.terminal import human_amount, stdout, table
    from onecard.registry.loader import load_registry
    from onecard.registry.sources import is_fetched

    registry = load_registry(args.registry)
    columns = ("model", "kind", "card", "floor", "ceiling", "files", "aliases", "source")
    rows = table(*columns, right=("floor", "ceiling", "files"))
    for model in registry.models:
        path = is_fetched(model)
        rows.add_row(
            model.name,
            model.kind,
            registry.card_of(model).name,
            human_amount(model.memory),
            human_amount(model.burst),
            format_bytes(_size_of(path)) if path else "not fetched",
            ", ".join(model.aliases),
            model.source,
        )
    stdout().print(rows)
    return 0


def pull(args: argparse.Namespace) -> int:
    from rich.console import Console

    from onecard.gateway.cli.terminal import fetch_all
    from onecard.registry.loader import load_registry
    from onecard.registry.sources import is_fetched

    registry = load_registry(args.registry)
    there = {model.name for model in registry.models if is_fetched(model)}
    for name, path in fetch_all(registry.models, Console(stderr=True)).items():
        verb = "was there" if name in there else "fetched"
        print(f"{name}: {verb}, {format_bytes(_size_of(path))}, {path}")
    return 0


def plan(args: argparse.Namespace) -> int:
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


def _size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())


def _add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    add_registry(parser)
    parser.add_argument("--json", action="store_true", help="the plan as JSON, for machines")


CHECK = Command(
    summary="validate a registry; say what is wrong and where",
    description="Read a registry and check all that it says itself, and the headers of models that are\n"
    "here; plan fetches the others, and says whether all of it fits.",
    epilog="""\
exit code: 0 when the registry is right, 1 when not; every problem is named with file, line, key and what to
write instead.

  onecard check configs/demo.yaml
""",
    add_arguments=add_registry,
    run=check,
)

LIST = Command(
    summary="list the models of a registry",
    description="List what a registry declares and what of it has been fetched; `onecard ps` says what runs.",
    epilog="""\
floor (`memory:`): how much of the card's `memory:` is guaranteed, for weights and KV cache together; ceiling
(`burst:`): what the model may hold while others leave it idle. `onecard ps` says what of it is KV cache.

  onecard list configs/demo.yaml
""",
    add_arguments=add_registry,
    run=list_models,
)

PULL = Command(
    summary="fetch the models of a registry",
    description="Fetch what is not there yet, check its sha256, and say where each model lies.",
    epilog="""\
`serve` does this by itself; `pull` is for building images and for machines that go offline later.
Weights are kept in $ONECARD_CACHE (~/.cache/onecard); hf: sources honour HF_HOME, HF_TOKEN, HF_ENDPOINT,
HF_HUB_OFFLINE.

  onecard pull configs/demo.yaml
""",
    add_arguments=add_registry,
    run=pull,
)

PLAN = Command(
    summary="the memory plan of a registry: who gets which part of each card",
    description="Work out who gets which part of each card, and draw it. No weights are loaded, but what is\n"
    "not there yet is fetched: the sizes stand in the files.",
    epilog="""\
exit code: 0 when everything fits, 1 when not (the numbers say by how much).

  onecard plan configs/demo.yaml
  onecard plan configs/demo.yaml --json | jq '.[0].arena_bytes'
""",
    add_arguments=_add_plan_arguments,
    run=plan,
)
