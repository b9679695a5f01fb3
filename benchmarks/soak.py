"""A long mixed load on a real server, with everything that may go wrong going wrong.

Two copies of a language model and an embedding model on a card too small for all of them; clients that ask,
compare every finished answer with the same question's lone greedy answer, and hang up at random moments; an
operator who puts models to sleep, wakes them and changes the registry, now and then for a broken one; steps
that fail (`soaking/faulty_server.py`). A 500 may be answered only while a step was made to fail, a 503 only
with `Retry-After`, and every request ends within two minutes. In every lull and at the end the pages of the
card must add up and none be in use; then every question is asked once more. Each size of step is
computed once before the load, so that what grows is no cache (`soaking/sizes.py`).

One JSON line at the end says what happened; the exit code is 1 if any of it should not have.
"""

import argparse
import asyncio
import json
import os
import re
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
from harness.report import machine
from soaking import answers, registries, sizes
from soaking.asking import Asker
from soaking.books import check_books, count_moves
from soaking.load import Load, Names
from soaking.memory import MOST_GROWTH, MemoryWatch
from soaking.orders import Operator
from soaking.server import Server
from soaking.tally import Tally

ACCUSATIONS = re.compile(
    r"^(CRITICAL|ERROR) .*|.*not intact.*|.*was never (retrieved|awaited).*", re.MULTILINE
)
OUR_DOING = re.compile(r"a step of \S+ failed|the registry is not reloaded")
"""What the server rightly logs about failures and registries that we made."""

FAILED_WAKE = re.compile(r" can't wake up$")


def main() -> None:
    args = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        result = asyncio.run(soak(args, Path(args.keep or folder)))
    line = json.dumps(result)
    print(line if args.json else json.dumps(result, indent=1), flush=True)
    if args.json_out is not None:
        args.json_out.parent.mkdir(parents=True, exist_ok=True)
        args.json_out.write_text(json.dumps(as_file(result), indent=1) + "\n")
    sys.exit(1 if result["problems"] else 0)


def as_file(result: dict[str, Any]) -> dict[str, Any]:
    """As the other benchmarks' files: what was run, and rows."""
    head = {key: result[key] for key in ("benchmark", "machine", "settings")}
    return {**head, "rows": [{key: value} for key, value in result.items() if key not in head]}


def parse_arguments() -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30, help="of load (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="draws all that is random (default: 0)")
    parser.add_argument("--clients", type=int, default=6, help="asking at once (default: 6)")
    parser.add_argument("--questions", type=int, default=60, help="different ones (default: 60)")
    parser.add_argument("--errors", type=float, default=0.004, help="share of steps that fail")
    parser.add_argument("--shortages", type=float, default=0.004, help="share of steps that find no memory")
    parser.add_argument("--threads", type=int, default=cores, help=f"compute threads (default: {cores})")
    parser.add_argument("--json", action="store_true", help="the result in one line")
    parser.add_argument("--json-out", type=Path, metavar="FILE", help="write the result there, too")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for the server's log, to look at later")
    return parser.parse_args()


async def soak(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    result = {"benchmark": "soak", "machine": machine(), "settings": _settings(args)}
    faults = {"SOAK_ERRORS": args.errors, "SOAK_SHORTAGES": args.shortages, "SOAK_SEED": args.seed}
    first, tally = registries.first(), Tally()
    server = await asyncio.to_thread(Server, folder, first.content, args.threads, faults)
    try:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout()) as session:
            asker = Asker(session, server.url)
            await sizes.visit_chat(asker, "a", registries.SMOLLM2["engine"])
            await sizes.visit_embedder(asker, "minilm", registries.MINILM["engine"])
            known = await answers.take(asker, "a", "minilm", args.questions, Random(args.seed))
            load = Load(asker, known, Names(first.chats, first.embedders), tally, args.clients)
            watch = MemoryWatch(server.process.pid)
            began = time.monotonic()
            await _stir(args, server, asker, load, tally, watch)
            tally.counts["seconds"] = round(time.monotonic() - began)
            await check_books(asker, tally)
            await count_moves(asker, tally)
            await load.verify_all()
            await check_books(asker, tally)
            await asyncio.to_thread(_check_ps, server, tally)
    finally:
        code = await asyncio.to_thread(server.stop)
    if code:
        tally.problem(f"the server's exit code is {code}")
    _check_failures(server, tally)
    _check_log(server, tally)
    memory = _check_memory(watch, tally)
    return {**result, **tally.figures(), "memory": memory, "problems": tally.problems}


async def _stir(
    args: argparse.Namespace, server: Server, asker: Asker, load: Load, tally: Tally, watch: MemoryWatch
) -> None:
    """All at once, until the time is over and the last answer is there; steps fail meanwhile."""
    random, until = Random(args.seed + 1), time.monotonic() + args.minutes * 60
    watching = asyncio.create_task(watch.run(min(10.0, args.minutes * 60 / 40)))
    server.arm(True)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(Random(random.random()), until))
            group.create_task(Operator(server, asker, load, tally, watch).run(Random(random.random()), until))
    finally:
        server.arm(False)
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    names = ("minutes", "seed", "clients", "questions", "errors", "shortages", "threads")
    return {name: getattr(args, name) for name in names}


def _check_ps(server: Server, tally: Tally) -> None:
    for model in server.models():
        tally.counts["requests that the server finished"] += model["finished"]
        if model["running"] or model["waiting"]:
            tally.problem(f"onecard ps at the end: {model}")


def _check_failures(server: Server, tally: Tally) -> None:
    """Each 500 needs a failed step while it was asked, and there are no more than requests in such steps."""
    failures = server.failures()
    for failure in failures:
        when = ", of a wake" if failure["waking"] else ""
        tally.counts[f"steps made to fail: {failure['fault']}{when}"] += 1
    fatal = [failure for failure in failures if failure["fault"] != "memory" and not failure["waking"]]
    lost = {request for failure in fatal for request in failure["requests"]}
    tally.counts["requests in failed steps"] = len(lost)
    if len(tally.failed_at) > len(lost):
        tally.problem(
            f"{len(tally.failed_at)} requests were answered 500, but {len(lost)} were in failed steps"
        )
    for began, ended in tally.failed_at:
        if not any(began <= failure["time"] <= ended for failure in fatal):
            tally.problem(
                f"a 500 while no step failed, at {time.strftime('%H:%M:%S', time.localtime(ended))}"
            )


def _check_log(server: Server, tally: Tally) -> None:
    """Errors that we didn't make; a wake may fail as often as we made one of its steps fail."""
    wakes = sum(failure["waking"] for failure in server.failures())
    for match in ACCUSATIONS.finditer(server.log.read_text(errors="replace")):
        line = match.group()
        if FAILED_WAKE.search(line) and tally.counts["failed wakes"] < wakes:
            tally.counts["failed wakes"] += 1
        elif not OUR_DOING.search(line):
            tally.problem(f"the server's log: {line[:300]}")


def _check_memory(watch: MemoryWatch, tally: Tally) -> dict[str, Any]:
    figures = watch.figures()
    if watch.growth > MOST_GROWTH:
        tally.problem(
            f"with no model loaded, the server has grown by {watch.growth:.1%}: {figures['unloaded']}"
        )
    return figures


if __name__ == "__main__":
    main()
