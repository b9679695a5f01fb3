"""`onecard pull`: fetch every model of a registry."""

import argparse
from pathlib import Path

from onecard.gateway.cli.command import Command, add_registry


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from onecard.gateway.cli.terminal import fetch_all
    from onecard.registry.loader import load_registry
    from onecard.registry.sources import is_fetched
    from onecard.registry.units import format_bytes

    console = Console(stderr=True)
    registry = load_registry(args.registry)
    there = {model.name for model in registry.models if is_fetched(model)}
    paths = fetch_all(registry.models, console)
    for name, path in paths.items():
        verb = "was there" if name in there else "fetched"
        print(f"{name}: {verb}, {format_bytes(size_of(path))}, {path}")
    return 0


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())


COMMAND = Command(
    summary="fetch the models of a registry",
    description="Fetch what is not there yet, check its sha256, and say where each model lies.",
    epilog="""\
`serve` does this by itself; `pull` is for building images and for machines that go offline later.
Weights are kept in $ONECARD_CACHE (~/.cache/onecard); hf: sources honour HF_HOME, HF_TOKEN, HF_ENDPOINT,
HF_HUB_OFFLINE.

  onecard pull configs/demo.yaml
""",
    add_arguments=add_registry,
    run=run,
)
