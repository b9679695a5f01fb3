"""By a request's `model` to the engine that serves it."""

from collections.abc import Sequence
from typing import Any

from onecard.engines.api import (
    InvalidRequestError,
    ModelInfo,
    ModelNotFoundError,
    Node,
    ShuttingDownError,
    Task,
    Tokenizing,
    UnsupportedTaskError,
)
from onecard.gateway.http.errors import shorten
from onecard.gateway.metrics import Metrics

IN_WORDS: dict[Task, str] = {"generate": "generate text"}
"""How a sentence says what a model doesn't do, where the task's name isn't enough."""


class ModelRouter:
    """Looks models up on the node at every request, so models that come and go are seen at once."""

    def __init__(self, node: Node, metrics: Metrics):
        self._node, self._metrics = node, metrics

    def engine_for(self, task: Task | None, name: str | None) -> Any:
        """The model under `name`, with the Protocol of `task` (None: `Tokenizing`, which all have).

        Without a `name`, the only one that does it; of several that have tokenizers, the only one that
        generates text. 404 if there is none, 400 if it does something else.
        """
        engine = self._engine(self._only(task) if name is None else name)
        if task is None or task in engine.info.tasks:
            return engine
        able = self._names(task)
        instead = f" Models that do: {', '.join(able)}." if able else ""
        raise UnsupportedTaskError(
            f"The model `{engine.info.name}` is of kind {engine.info.kind}: "
            f"it doesn't {IN_WORDS.get(task, task)}.{instead}",
            param="model",
        )

    def info(self, name: str) -> ModelInfo:
        """What is known of the model that answers to `name` or to an alias, also while the node drains."""
        found = self._find(name)
        if found is None:
            raise self._unknown(name)
        return found

    def knows(self, name: str) -> bool:
        """Whether a model answers to `name`."""
        return self._find(name) is not None

    def models(self) -> Sequence[ModelInfo]:
        return self._node.models()

    def _engine(self, name: str) -> Tokenizing:
        try:
            return self._node.engine(name)
        except ModelNotFoundError:
            raise self._unknown(name) from None
        except ShuttingDownError:
            if (found := self._find(name)) is not None:
                self._metrics.rejected(found.name, "draining")
            raise

    def _find(self, name: str) -> ModelInfo | None:
        return next((info for info in self._node.models() if name in (info.name, *info.aliases)), None)

    def _unknown(self, name: str) -> ModelNotFoundError:
        return ModelNotFoundError(
            f"The model `{shorten(name)}` does not exist. Valid aliases: {', '.join(self._names())}.",
            param="model",
            code="model_not_found",
        )

    def _only(self, task: Task | None) -> str:
        able = [info.name for info in self._able(task)]
        talkers = [info.name for info in self._able("generate")] if task is None else []
        for candidates in (able, talkers):
            if len(candidates) == 1:
                return candidates[0]
        choice = f"one of: {', '.join(able)}" if able else "but no served model does this"
        raise InvalidRequestError(f"`model` is required, {choice}.", param="model")

    def _names(self, task: Task | None = None) -> list[str]:
        return [name for info in self._able(task) for name in (info.name, *info.aliases)]

    def _able(self, task: Task | None) -> list[ModelInfo]:
        return [info for info in self._node.models() if task is None or task in info.tasks]
