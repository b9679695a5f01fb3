"""`onecard ps`: what a running server does."""

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from onecard.gateway.cli.command import Command, add_server

if TYPE_CHECKING:
    from rich.table import Table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server(parser, admin=True)
    parser.add_argument("--json", action="store_true", help="the server's whole answer, for machines")


def run(args: argparse.Namespace) -> int:
    from onecard.gateway.cli.client import Client

    status = Client(args.url, args.api_key, timeout=10).get("/admin/status")
    if args.json:
        print(json.dumps(status, indent=2))
    else:
        _print_tables(status)
    return 0


def _print_tables(status: dict[str, Any]) -> None:
    from onecard.gateway.cli.terminal import stdout

    console = stdout()
    console.print(f"server: {status['state']}", highlight=False)
    console.print(_models(status["models"]))
    console.print(_cards(status["cards"]))
    if looks := [(card["name"], card["health"]) for card in status["cards"] if card.get("health")]:
        console.print(_health(looks))


def _models(rows: list[dict[str, Any]]) -> "Table":
    from onecard.gateway.cli.terminal import table
    from onecard.registry.units import format_bytes

    numbers = ("weights", "KV used", "KV owned", "floor", "ceiling", "running", "waiting", "finished")
    made = table("model", "kind", "card", "state", *numbers, right=numbers)
    nbytes = ("weight_bytes", "kv_bytes_used", "kv_bytes_owned", "floor_bytes", "ceiling_bytes")
    for row in rows:
        made.add_row(
            *(row[key] for key in ("name", "kind", "card", "state")),
            *(format_bytes(row[key]) for key in nbytes),
            *(f"{row[key]:,}" for key in ("running", "waiting", "finished")),
        )
    return made


def _cards(rows: list[dict[str, Any]]) -> "Table":
    from onecard.gateway.cli.terminal import table
    from onecard.registry.units import format_bytes

    numbers = ("budget", "of", "arena", "page", "pages free")
    made = table("card", "device", *numbers, right=numbers)
    for row in rows:
        made.add_row(
            row["name"],
            row["device"],
            *(format_bytes(row[key]) for key in ("budget_bytes", "total_bytes", "arena_bytes", "page_bytes")),
            f"{row['pages_free']:,} of {row['pages_total']:,}",
        )
    return made


def _health(looks: list[tuple[str, dict[str, Any]]]) -> "Table":
    from onecard.gateway.cli.terminal import table
    from onecard.registry.units import format_bytes

    numbers = ("used", "total", "utilization", "temperature", "power")
    made = table("card", *numbers, "throttled by", "other processes", right=numbers)
    for name, seen in looks:
        made.add_row(
            name,
            *(_told(seen[key], format_bytes) for key in ("used_bytes", "total_bytes")),
            _told(seen["utilization"], "{:.0%}".format),
            _told(seen["temperature_c"], "{} °C".format),
            _told(seen["power_w"], "{:.0f} W".format),
            _told(seen["throttle_reasons"], ", ".join) or "nothing",
            _told(seen["foreign_processes"], _others) or "none",
        )
    return made


def _told(value: Any, show: Callable[[Any], str]) -> str:
    return "?" if value is None else show(value)


def _others(processes: list[dict[str, Any]]) -> str:
    """Names are anybody's: square brackets in them are no markup."""
    from rich.markup import escape

    from onecard.registry.units import format_bytes

    return ", ".join(
        f"{escape(p['name'] or 'unnamed')} ({p['pid']}): {_told(p['used_bytes'], format_bytes)}"
        for p in processes
    )


COMMAND = Command(
    summary="what runs on a server: state, bytes, requests",
    description="Ask a running server for its models, the memory they hold and the requests they work on.",
    epilog="""\
KV used: by requests now; KV owned: with cached prefixes and loans; floor: guaranteed; ceiling: at most.
The last table is what the card itself says (NVML; for a CPU, the operating system); ?: it doesn't tell.

  onecard ps
  onecard ps --url http://gpu-box:8000 --api-key "$ADMIN_KEY"
  watch -n 1 onecard ps
""",
    add_arguments=add_arguments,
    run=run,
)
