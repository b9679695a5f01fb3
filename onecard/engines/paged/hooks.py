"""How a language model moves in and out of its card (`lifecycle.card_model.EngineHooks`)."""

import logging
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import nn

from onecard.engines.paged.core import PagedCore
from onecard.engines.paged.paged_model import PagedModel
from onecard.engines.paged.runner import ModelRunner
from onecard.engines.paged.warm_up import NoRoomError, WarmUp
from onecard.engines.runtime.peak_memory import counts_memory, peak_bytes, taken_bytes
from onecard.registry.units import format_bytes as human

logger = logging.getLogger(__name__)

SMALLEST_STEP = 64


class PagedHooks:
    """`workspace_bytes`: what the plan has for a step's activations. `on_capture(done, all)` counts graphs.

    `warm_up` None: the first request finds kernels that aren't compiled (tests that open many nodes).
    """

    def __init__(
        self,
        core: PagedCore,
        runner: ModelRunner,
        device: torch.device,
        workspace_bytes: int,
        warm_up: WarmUp | None,
        on_capture: Callable[[int, int], None] | None = None,
    ):
        self.core = core
        self.peak_bytes: int | None = None
        """What the largest step took beside weights and cache; None where that wasn't measured."""
        self.graph_bytes: int | None = None
        self._most_tokens: int | None = None
        """Of a step, where the workspace has turned out to hold no more."""
        self._runner = runner
        self._device = device
        self._workspace_bytes = workspace_bytes
        self._warm_up = warm_up
        self._on_capture = on_capture
        self._captured = self._warm = False

    def move_in(self, model: nn.Module) -> Generator[None, None, None]:
        """Runs one step, or captures one graph, at a time, and the card does nothing else meanwhile.

        Beside others that hold all pages there is no room for the first steps: they run the next time."""
        self._runner.use(cast(PagedModel, model))
        try:
            if not self._warm:
                yield from self._prepare()
            self._warm = True
        except NoRoomError as error:
            logger.info("%s: requests may find kernels that aren't compiled", error)
            yield from self._capture()
            self.move_out()

    def move_out(self) -> None:
        pool = self.core.scheduler.kv.pool
        pool.reset_prefix_cache()
        pool.release_idle_pages()
        pool.check_integrity()

    def forget(self) -> None:
        self._runner.use(None)

    def close(self) -> None:
        self.forget()
        self._runner.graphs = None

    def has_requests(self) -> bool:
        return self.core.has_work()

    def limit_steps(self, max_num_seqs: int, max_num_batched_tokens: int, long_prefill: int) -> None:
        tokens = min(max_num_batched_tokens, self._most_tokens or max_num_batched_tokens)
        self.core.scheduler.limits = replace(
            self.core.scheduler.limits,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=tokens,
            long_prefill_token_threshold=long_prefill,
        )

    def _prepare(self) -> Iterator[None]:
        warm_up = self._warm_up
        if warm_up is not None:
            yield from warm_up.usual_steps()  # what libraries take once isn't the largest step's
            if counts_memory(self._device):
                yield from self._fit_largest_step(warm_up)
        yield from self._capture()
        if warm_up is not None:
            if self._runner.graphs is not None:
                yield from warm_up.usual_steps()  # those that replay
            warm_up.leave()

    def _capture(self) -> Iterator[None]:
        """All graphs, the largest first: the smaller ones fit into its memory."""
        graphs = self._runner.graphs
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
        while True:
            self.peak_bytes = peak_bytes(self._device, warm_up.largest_step)
            yield
            limits = self.core.scheduler.limits
            if self.peak_bytes is None or self.peak_bytes <= self._workspace_bytes:
                return
            if limits.max_num_batched_tokens <= max(SMALLEST_STEP, limits.max_num_seqs):
                break
            smaller = max(SMALLEST_STEP, limits.max_num_seqs, limits.max_num_batched_tokens // 2)
            logger.warning(
                "%s: a step of %d tokens takes %s, more than the %s planned: from now on it has %d at most",
                self.core.name,
                limits.max_num_batched_tokens,
                human(self.peak_bytes),
                human(self._workspace_bytes),
                smaller,
            )
            self._most_tokens = smaller
            self.core.scheduler.limits = replace(limits, max_num_batched_tokens=smaller)
        logger.warning(
            "%s: its smallest step takes %s, more than the %s planned: lower `max_num_seqs:`",
            self.core.name,
            human(self.peak_bytes),
            human(self._workspace_bytes),
        )
