"""How an embedding model moves in and out of its card (`lifecycle.card_model.EngineHooks`)."""

import logging
from collections.abc import Generator, Iterator

import torch
from torch import nn

from onecard.engines.oneshot.core import OneShotCore
from onecard.engines.oneshot.warm_up import WarmUp
from onecard.engines.runtime.peak_memory import counts_memory, peak_bytes
from onecard.registry.units import format_bytes as human

logger = logging.getLogger(__name__)


class OneShotHooks:
    """`workspace_bytes`: what the plan has for a step's activations. `warm_up` None: nothing runs before the
    first request (tests that open many nodes)."""

    def __init__(self, core: OneShotCore, device: torch.device, workspace_bytes: int, warm_up: WarmUp | None):
        self.core = core
        self.peak_bytes: int | None = None
        """What the largest step took beside the weights; None where it wasn't, or can't be, measured."""
        self.graph_bytes: int | None = None
        self._device = device
        self._workspace_bytes = workspace_bytes
        self._warm_up = warm_up
        self._moved_in_before = False

    def move_in(self, model: nn.Module) -> Generator[None, None, None]:
        """Runs one step at a time."""
        self.core.model = model
        if not self._moved_in_before and self._warm_up is not None:
            yield from self._prepare(self._warm_up)
        self._moved_in_before = True

    def move_out(self) -> None:
        """An encoder holds nothing between steps."""

    def forget(self) -> None:
        self.core.model = None

    def close(self) -> None:
        self.forget()

    def has_requests(self) -> bool:
        return self.core.has_requests

    def limit_steps(self, max_num_seqs: int, max_num_batched_tokens: int, long_prefill: int) -> None:
        self.core.limit_steps(max_num_seqs, max_num_batched_tokens)

    def _prepare(self, warm_up: WarmUp) -> Iterator[None]:
        yield from warm_up.usual_steps()
        if counts_memory(self._device):
            self._measure(warm_up)
            yield
        warm_up.leave()

    def _measure(self, warm_up: WarmUp) -> None:
        self.peak_bytes = peak_bytes(self._device, warm_up.largest_step)
        if self.peak_bytes is not None and self.peak_bytes > self._workspace_bytes:
            logger.warning(
                "%s: its largest step takes %s, more than the %s planned: lower `max_num_batched_tokens:`",
                self.core.name,
                human(self.peak_bytes),
                human(self._workspace_bytes),
            )
