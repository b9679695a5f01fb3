"""The soak in short: what a long run would catch, as far as half a minute can."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SOAK = ROOT / "benchmarks" / "soak.py"

OPTIONS = [
    "--minutes",
    "0.3",
    "--questions",
    "6",
    "--clients",
    "4",
    "--errors",
    "0.02",
    "--shortages",
    "0.02",
]


@pytest.mark.weights
def test_nothing_goes_wrong_while_everything_goes_wrong(demo_paths: dict[str, Path], tmp_path: Path):
    out = tmp_path / "soak.json"
    command = [sys.executable, str(SOAK), *OPTIONS, "--json", "--json-out", str(out)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, (run.stdout + run.stderr)[-8000:]
    result = json.loads(run.stdout)
    assert {"counts": result["counts"]} in json.loads(out.read_text())["rows"]
    assert result["problems"] == []
    counts = result["counts"]
    assert counts["answered"] > 12
    assert counts["lulls"] > 0
    assert counts["reloads"] > 0
    assert sum(count for what, count in counts.items() if what.startswith("sleeps")) > 0
    assert sum(count for what, count in counts.items() if what.startswith("steps made to fail")) > 0
    assert result["memory"]["unloaded"]["looks"] > 0


@pytest.fixture
def soaking(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The soak's modules, imported as the script imports them."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    names = ("asking", "books", "load", "memory", "questions", "sizes", "tally")
    modules = {name: importlib.import_module(f"soaking.{name}") for name in names}
    return SimpleNamespace(**modules, script=importlib.import_module("soak"))


def test_another_answer_is_wrong(soaking: SimpleNamespace):
    reply = soaking.questions.Reply
    right = reply(("a b", "a b"), ("length", "stop"), 5)
    assert right.equals(reply(("a b", "a b"), ("length", "stop"), 5))
    for wrong in (
        reply(("a b", "a c"), ("length", "stop"), 5),
        reply(("a b", "a b"), ("length", "length"), 5),
        reply(("a b", "a b"), ("length", "stop"), 6),
        reply(("a b",), ("length",), 5),
        reply(vectors=np.zeros((2, 3))),
    ):
        assert not right.equals(wrong)
    vectors = reply(vectors=np.full((2, 3), 0.5))
    assert vectors.equals(reply(vectors=np.full((2, 3), 0.50005)))
    assert not vectors.equals(reply(vectors=np.full((2, 3), 0.501)))
    assert not vectors.equals(reply(vectors=np.full((1, 3), 0.5)))


def test_what_may_be_answered_with_what(soaking: SimpleNamespace):
    question = soaking.questions.Question("completion", {"prompt": "x"})
    known = SimpleNamespace(question=question, reply=soaking.questions.Reply(("y",), ("stop",), 1))
    tally = soaking.tally.Tally()
    names = soaking.load.Names(frozenset({"a", "new"}), frozenset())
    names.narrow(frozenset({"a"}), frozenset())
    load = soaking.load.Load(None, [known], names, tally, 1)

    def judged(name: str, began: float, **outcome: object) -> int:
        before = tally.counts["problems"]
        load._judge(known, name, soaking.asking.Outcome(**outcome), began)
        return tally.counts["problems"] - before

    now = time.monotonic()
    assert judged("a", now, status=200, reply=known.reply) == 0
    assert judged("a", now, status=200, reply=soaking.questions.Reply(("z",), ("stop",), 1)) == 1
    assert judged("a", now, status=503, retry_after="1") == 0
    assert judged("a", now, status=503) == 1
    assert judged("a", now, status=0, message="no whole answer") == 1
    assert judged("new", now - 10, status=404) == 0, "asked for before it was taken away"
    assert judged("new", now + 10, status=404) == 1
    assert judged("a", now - 10, status=404) == 1


def test_a_500_needs_a_failed_step(soaking: SimpleNamespace):
    failure = {"time": 5.0, "fault": "after", "requests": ["r"], "waking": False}
    failed = SimpleNamespace(failures=lambda: [failure])
    short = SimpleNamespace(failures=lambda: [{**failure, "fault": "memory"}])
    for server, asked, problems in (
        (failed, [(4.0, 6.0)], 0),
        (failed, [(5.5, 6.0)], 1),
        (failed, [(4.0, 6.0), (4.0, 6.0)], 1),
        (short, [(4.0, 6.0)], 2),
    ):
        tally = soaking.tally.Tally(failed_at=asked)
        soaking.script._check_failures(server, tally)
        assert tally.counts["problems"] == problems


async def test_books_that_do_not_add_up_are_told(soaking: SimpleNamespace):
    model = {"name": "a", "state": "ready", "home_pages": 4, "owned_pages": 2}
    model |= {"active_pages": 0, "cached_pages": 1, "idle_pages": 1}
    idle = {"models": [{"name": "a", "running": 0, "waiting": 0}]}

    async def wrong(free: int, **changes: object) -> list[str]:
        cards = [{"num_pages": 16, "free_pages": free, "models": [{**model, **changes}]}]
        looks = {"/admin/status": idle, "/admin/pool": {"cards": cards}}

        async def look(path: str) -> object:
            return looks[path]

        return await soaking.books._wrong(SimpleNamespace(look=look))

    assert await wrong(10) == []
    assert len(await wrong(9)) == 1
    assert len(await wrong(10, active_pages=1, idle_pages=0)) == 1
    assert len(await wrong(10, state="failed")) == 2, "it doesn't serve, and its home is nobody's"
    assert await wrong(14, state="asleep") == []


def test_growth_is_told_from_ups_and_downs(soaking: SimpleNamespace):
    watch = soaking.memory.MemoryWatch(os.getpid())
    watch.unloaded = [600, 640, 590, 600, 610, 640, 590, 605, 600, 640]
    assert watch.growth < soaking.memory.MOST_GROWTH
    watch.unloaded = [600 + 10 * i for i in range(10)]
    assert watch.growth > soaking.memory.MOST_GROWTH
    watch.unloaded = [600, 900]
    assert watch.growth == 0, "two looks tell nothing"


def test_sizes_are_visited_up_to_the_largest_step(soaking: SimpleNamespace):
    sizes = soaking.sizes.sizes(100)
    assert sizes[:18] == [*range(1, 17), 18, 20]
    assert sizes[-2:] == [96, 100]
    texts = soaking.sizes._texts(600)
    assert [len(text) for text in texts] == [250, 250, 100]
