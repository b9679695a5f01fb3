"""Of which models nothing runs: the card's loop says so, once it is so."""

from collections.abc import Callable
from functools import partial
from weakref import WeakKeyDictionary, WeakSet

from onecard.engines.lifecycle.card_model import CardModel
from onecard.engines.runtime.device_loop import DeviceLoop


class QuietWatch:
    """Lives on the event loop; `on_answer` hears of each model that was watched once nothing of it runs.

    The loop answers after all that was posted before it was asked. A gate counts whom it lets in, and whoever
    is let in is posted at once: so an answer holds for as long as that count is what it was at the question.
    """

    def __init__(self, loop: DeviceLoop, on_answer: Callable[[CardModel], None]):
        self._loop, self._on_answer = loop, on_answer
        self._num_uses: WeakKeyDictionary[CardModel, int] = WeakKeyDictionary()
        """Of each model's gate, when the loop was asked."""
        self._watched: WeakSet[CardModel] = WeakSet()

    def is_quiet(self, card_model: CardModel) -> bool:
        unused = self._num_uses.get(card_model) == card_model.gate.num_uses
        return unused and not card_model.hooks.has_requests()

    def watch(self, card_model: CardModel) -> None:
        if card_model not in self._watched:
            self._watched.add(card_model)
            tell = partial(self._answered, card_model, card_model.gate.num_uses)
            self._loop.when_idle(card_model.hooks.has_requests, tell)

    def _answered(self, card_model: CardModel, num_uses: int) -> None:
        self._watched.discard(card_model)
        self._num_uses[card_model] = num_uses
        self._on_answer(card_model)
