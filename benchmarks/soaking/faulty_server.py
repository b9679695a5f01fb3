"""`onecard` whose steps fail now and then: python faulty_server.py serve REGISTRY ...

While the file `armed` exists in the folder that $SOAK_FOLDER names, $SOAK_ERRORS of all steps raise an error
(before they run, after that, or when they are collected) and $SOAK_SHORTAGES find no memory. Every such step
is a line of `failures.jsonl` there. The server itself is the product's own and knows nothing of this.
"""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

MOST_IN_A_ROW = 2
"""Failures of one engine: with one more it would be taken off the loop for good."""


class Faults:
    """Called on the device loop's thread alone."""

    def __init__(self, folder: Path, errors: float, shortages: float, seed: int) -> None:
        self._armed = folder / "armed"
        self._log = (folder / "failures.jsonl").open("a", buffering=1)
        self._errors, self._shortages = errors, shortages
        self._random = Random(seed)
        self._in_a_row: Counter[int] = Counter()

    def draw(self, engine: object) -> str | None:
        """What befalls the engine's next step: before, after, collect or memory; None: nothing."""
        seen, drawn = id(engine), self._random.random()
        if not self._armed.exists() or self._in_a_row[seen] >= MOST_IN_A_ROW:
            drawn = 1.0
        if drawn < self._errors:
            self._in_a_row[seen] += 1
            return self._random.choice(["before", "after", "collect"])
        if drawn < self._errors + self._shortages and not self._in_a_row[seen]:
            self._in_a_row[seen] += 1
            return "memory"
        self._in_a_row[seen] = 0
        return None

    def note(self, fault: str, requests: Sequence[object], waking: bool) -> None:
        """`requests`: what identifies those that have a part in the step. `waking`: it is one of a model's
        own first steps."""
        lost = [] if waking else sorted({str(request) for request in requests})
        entry = {"time": time.time(), "fault": fault, "requests": lost, "waking": waking}
        self._log.write(json.dumps(entry) + "\n")


class BrokenMark:
    """A `StepMark` of a step that turns out to have failed."""

    def __init__(self, mark: Any) -> None:
        self._mark = mark

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mark, name)

    def wait(self) -> None:
        self._mark.wait()
        raise RuntimeError("a failure made by the soak test, noticed late")


def raise_fault(fault: str) -> None:
    import torch

    if fault == "memory":
        raise torch.OutOfMemoryError("a shortage made by the soak test")
    raise RuntimeError(f"a failure made by the soak test, {fault} the step")


def break_language_models(faults: Faults) -> None:
    from onecard.engines.paged.runner import ModelRunner

    launch = ModelRunner.launch

    def faulty(self: Any, schedule: Any) -> Any:
        fault = faults.draw(self)
        if fault is None:
            return launch(self, schedule)
        requests = [item.sequence.request.request_id for item in schedule.items]
        faults.note(fault, requests, waking=any(name.startswith("warm-up") for name in requests))
        if fault == "before":
            raise_fault(fault)
        output = launch(self, schedule)
        if fault != "collect":
            raise_fault(fault)
        return replace(output, mark=BrokenMark(output.mark))

    ModelRunner.launch = faulty  # type: ignore[method-assign]


def break_encoders(faults: Faults) -> None:
    from onecard.engines.oneshot.core import OneShotCore

    run = OneShotCore._run

    def faulty(self: Any, batch: Any) -> Any:
        fault = faults.draw(self)
        if fault is None:
            return run(self, batch)
        faults.note(fault, list(map(id, batch.jobs)), waking=any(job.arrived == 0.0 for job in batch.jobs))
        if fault == "before":
            raise_fault(fault)
        output = run(self, batch)
        if fault != "collect":
            raise_fault(fault)
        return replace(output, mark=BrokenMark(output.mark))

    OneShotCore._run = faulty  # type: ignore[method-assign]


def main() -> int:
    from onecard.gateway.cli import main as onecard
    from onecard.gateway.cli.startup import settle_threads

    settle_threads()  # before torch is imported
    rates = [float(os.environ.get(name, "0")) for name in ("SOAK_ERRORS", "SOAK_SHORTAGES")]
    faults = Faults(Path(os.environ["SOAK_FOLDER"]), *rates, seed=int(os.environ.get("SOAK_SEED", "0")))
    break_language_models(faults)
    break_encoders(faults)
    return onecard(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
