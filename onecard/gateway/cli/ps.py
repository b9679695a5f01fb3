"""`onecard ps`: what a running server does."""

import argparse
import json
from collections.abc import Callable, Iterator
from typing import Any

from onecard.gateway.cli.client import Client
from onecard.gateway.cli.command import Command, add_server
from onecard.registry.units import format_bytes

Words = tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server(parser, admin=True)
    parser.add_argument("--json", action="store_true", help="the server's whole answer, for machines")


def run(args: argparse.Namespace) -> int:
    status = Client(args.url, args.api_key, timeout=10).get("/admin/status")
    if args.json:
        print(json.dumps(status, indent=2))
    else:
        _print_tables(status)
    return 0


def _print_tables(status: dict[str, Any]) -> None:
    from onecard.gateway.cli.terminal import stdout, table

    console = stdout()
    console.print(f"server: {status['state']}", highlight=False)
    for words, numbers, more, rows in _tables(status):
        made = table(*words, *numbers, *more, right=numbers)
        for row in rows:
            made.add_row(*row)
        console.print(made)


def _tables(status: dict[str, Any]) -> Iterator[tuple[Words, Words, Words, list[Words]]]:
    """Each with the names of its columns of words, of numbers, and of words once more, and its rows."""
    memory: Words = ("weights", "KV used", "KV owned", "KV floor", "KV ceiling")
    nbytes: Words = ("weight_bytes", "kv_bytes_used", "kv_bytes_owned", "floor_bytes", "ceiling_bytes")
    models: list[Words] = [
        (
            *(model[key] for key in ("name", "kind", "card", "state")),
            *(format_bytes(model[key]) for key in nbytes),
            *(f"{model[key]:,}" for key in ("running", "waiting", "finished")),
        )
        for model in status["models"]
    ]
    yield ("model", "kind", "card", "state"), (*memory, "running", "waiting", "finished"), (), models
    nbytes = ("budget_bytes", "total_bytes", "arena_bytes", "page_bytes")
    cards: list[Words] = [
        (
            card["name"],
            card["device"],
            *(format_bytes(card[key]) for key in nbytes),
            f"{card['pages_free']:,} of {card['pages_total']:,}",
        )
        for card in status["cards"]
    ]
    yield ("card", "device"), ("budget", "of", "arena", "page", "pages free"), (), cards
    if looks := [_health(card["name"], card["health"]) for card in status["cards"] if card.get("health")]:
        numbers: Words = ("used", "total", "utilization", "temperature", "power")
        yield ("card",), numbers, ("throttled by", "other processes"), looks


def _health(card: str, seen: dict[str, Any]) -> Words:
    return (
        card,
        *(_told(seen[key], format_bytes) for key in ("used_bytes", "total_bytes")),
        _told(seen["utilization"], "{:.0%}".format),
        _told(seen["temperature_c"], "{} °C".format),
        _told(seen["power_w"], "{:.0f} W".format),
        _told(seen["throttle_reasons"], ", ".join) or "nothing",
        _told(seen["foreign_processes"], _others) or "none",
    )


def _told(value: Any, show: Callable[[Any], str]) -> str:
    return "?" if value is None else show(value)


def _others(processes: list[dict[str, Any]]) -> str:
    """Names are anybody's: square brackets in them are no markup."""
    from rich.markup import escape

    return ", ".join(
        f"{escape(p['name'] or 'unnamed')} ({p['pid']}): {_told(p['used_bytes'], format_bytes)}"
        for p in processes
    )


COMMAND = Command(
    summary="what runs on a server: state, bytes, requests",
    description="Ask a running server for its models, the memory they hold and the requests they work on.",
    epilog="""\
KV used: by requests now; KV owned: with cached prefixes and loans; KV floor, KV ceiling: what the weights
leave of the floor and the ceiling that `onecard list` shows.
The last table is what the card itself says (NVML; for a CPU, the operating system); ?: it doesn't tell.

  onecard ps
  onecard ps --url http://gpu-box:8000 --api-key "$ADMIN_KEY"
  watch -n 1 onecard ps
""",
    add_arguments=add_arguments,
    run=run,
)
