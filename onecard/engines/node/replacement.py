"""Models that come, go, or change places with their next incarnation, one at a time or side by side.

A name is routable from the moment a move is announced: requests wait at the new engine's gate while the old
one finishes what it was given. Two engines of one name are never on a card together.
"""

import asyncio
import logging
from dataclasses import dataclass, field, replace

from onecard.engines.api import EngineError, ModelNotFoundError, ModelUnavailableError
from onecard.engines.lifecycle.manager import BrokenModelError
from onecard.engines.lifecycle.reload_moves import arrive, discard, renew, resize, retire
from onecard.engines.node.served import ServedModel

logger = logging.getLogger(__name__)


@dataclass
class Move:
    """`old` goes, `new` comes; one of them may be None. `keeps_weights`: `new` takes over those of `old`.
    `wakes`: it is to be awake at the end.
    """

    old: ServedModel | None = None
    new: ServedModel | None = None
    keeps_weights: bool = False
    wakes: bool = False
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    """Whether the new engine's gate leads anywhere yet."""

    def announce(self) -> None:
        """Requests for the new engine wait from now on; the old one may be asked to make room."""
        if self.old is not None:
            self.old.card_model.policy = replace(self.old.card_model.policy, pinned=False)
        if self.new is not None:
            gate = self.new.card_model.gate
            gate.state, gate.wake = "loading", self._wait

    async def carry_out(self) -> str | None:
        """Returns what went wrong: then the new model has failed, or there is no room for it or its floor."""
        try:
            await self._carry_out()
        except BrokenModelError as error:
            return await self._fail(error)
        except EngineError as error:
            return str(error)
        except Exception as error:
            name = self.new.info.name if self.new is not None else "a model that leaves"
            logger.exception("%s can't be brought to its card, or off it", name)
            return await self._fail(BrokenModelError(f"The model `{name}` can't be served: {error}"))
        finally:
            self.arrived.set()
        return None

    async def _carry_out(self) -> None:
        old, new = self.old, self.new
        if new is None:
            assert old is not None
            await retire(old.card.manager, old.card_model, _removed(old))
            return
        card_model = new.card_model
        floor, ceiling = card_model.floor_pages, card_model.ceiling_pages
        if old is not None and self.keeps_weights:
            await renew(new.card.manager, old.card_model, card_model, _replaced(old))
        else:
            if old is not None:
                await retire(old.card.manager, old.card_model, _replaced(old))
            await arrive(new.card.manager, card_model)
        self.arrived.set()
        if card_model.floor_pages < floor:
            await resize(new.card.manager, card_model, floor, ceiling)
        if self.wakes and not card_model.awake:
            await new.card.manager.wake(new.info.name)

    async def _wait(self) -> None:
        await self.arrived.wait()

    async def _fail(self, error: ModelUnavailableError) -> str:
        if self.new is not None:
            self.new.card_model.gate.fail(error)
            await discard(self.new.card.manager, self.new.card_model, error)
        return str(error)


def _removed(model: ServedModel) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"The model `{model.info.name}` is no longer served.", param="model", code="model_not_found"
    )


def _replaced(model: ServedModel) -> ModelUnavailableError:
    return ModelUnavailableError(
        f"The model `{model.info.name}` was replaced while this request was on its way; send it again."
    )
