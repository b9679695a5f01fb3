"""How an engine moves in and out of its card: the same for every kind."""

import logging
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from onecard.engines.runtime.memory_use import counts_memory, peak_bytes, taken_bytes
from onecard.engines.step.core import StepCore
from onecard.engines.step.warm_up import NoPagesError, WarmUp
from onecard.registry.units import counted
from onecard.registry.units import format_bytes as human

logger = logging.getLogger(__name__)

SMALLEST_STEP = 64


class EngineHooks:
    """What an engine does when its weights come and go; all of it on the device loop's thread, but for
    `move_in` at start, when there is no such thread yet.

    `workspace_bytes`: what the plan has for a step's activations. `on_capture(done, all)` counts graphs.
    `warm_up` None: nothing runs before the first request (tests that open many nodes).
    """

    def __init__(
        self,
        core: StepCore[Any, Any],
        device: torch.device,
        workspace_bytes: int,
        warm_up: WarmUp | None,
        on_capture: Callable[[int, int], None] | None = None,
    ):
        self.core = core
        self.peak_bytes: int | None = None
        """What the largest step took beside weights and cache; None where that can't be measured."""
        self.graph_bytes: int | None = None
        """What the captured graphs hold; None where there are none."""
        self._device = device
        self._workspace_bytes = workspace_bytes
        self._warm_up = warm_up
        self._on_capture = on_capture
        self._captured = self._warm = False

    def move_in(self, model: nn.Module) -> Generator[None, None, None]:
        """Steps run on `model` from now on; the first time, get ready to serve (measure, capture, warm up).

        It takes going through the generator: each part runs one step, or captures one graph, and others'
        steps run between. Beside others that hold all pages there is no room for the first steps: they run
        the next time."""
        self.core.use(model)
        try:
            if not self._warm:
                yield from self._prepare()
            self._warm = True
        except NoPagesError as error:
            logger.info("%s: requests may find kernels that aren't compiled", error)
            yield from self._capture()
            self.move_out()

    def move_out(self) -> None:
        """Nothing runs: give back all memory of the card but the weights'."""
        self.core.rest()

    def forget(self) -> None:
        """Hold the model no longer."""
        self.core.use(None)

    def close(self) -> None:
        """The engine leaves its card for good: hold nothing there."""
        self.core.close()

    def has_requests(self) -> bool:
        """Whether anything runs or waits. Any thread may ask."""
        return self.core.has_requests()

    def _prepare(self) -> Iterator[None]:
        warm_up = self._warm_up
        if warm_up is not None:
            yield from warm_up.usual_steps()  # what libraries take once isn't the largest step's
            if counts_memory(self._device):
                yield from self._fit_largest_step(warm_up)
        yield from self._capture()
        if warm_up is not None:
            if self.core.graphs is not None:
                yield from warm_up.usual_steps()  # those that replay
            self.core.rest()

    def _capture(self) -> Iterator[None]:
        """All graphs, the largest first: the smaller ones fit into its memory."""
        graphs = self.core.graphs
        if graphs is not None and not self._captured:
            self.graph_bytes = None
            for done, size in enumerate(reversed(graphs.sizes)):
                taken = taken_bytes(self._device, partial(graphs.capture, size))
                if taken is not None:
                    self.graph_bytes = (self.graph_bytes or 0) + taken
                if self._on_capture is not None:
                    self._on_capture(done + 1, len(graphs.sizes))
                yield
        self._captured = True

    def _fit_largest_step(self, warm_up: WarmUp) -> Iterator[None]:
        """A step that takes more than was planned is made smaller, until it doesn't."""
        core = self.core
        while True:
            self.peak_bytes = peak_bytes(self._device, warm_up.largest_step)
            yield
            if self.peak_bytes is None or self.peak_bytes <= self._workspace_bytes:
                return
            tokens, least = core.max_step_tokens, max(SMALLEST_STEP, core.min_step_tokens)
            smaller = max(least, tokens // 2)
            more = f"takes {human(self.peak_bytes)}, more than the {human(self._workspace_bytes)} planned"
            if tokens <= least:
                logger.warning("%s: its smallest step %s: lower `max_num_seqs:`", core.name, more)
                return
            logger.warning(
                "%s: a step of %s %s: from now on it has %d at most",
                core.name,
                counted(tokens, "token"),
                more,
                smaller,
            )
            core.shrink_steps(smaller)
