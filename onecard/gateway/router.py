"""By a request's `model` to the engine that serves it."""

from collections.abc import Sequence
from typing import Literal, cast

from onecard.engines.api import (
    Embedder,
    InvalidRequestError,
    ModelInfo,
    ModelNotFoundError,
    Node,
    ShuttingDownError,
    TextGenerator,
    Tokenizing,
    UnsupportedTaskError,
)
from onecard.gateway.errors import shorten
from onecard.gateway.reporting import GatewayMetrics

Task = Literal["generate text", "embed"]
KINDS_OF_TASK: dict[Task, tuple[str, ...]] = {"generate text": ("llm", "vlm"), "embed": ("embedding",)}
ALL_KINDS = tuple(kind for kinds in KINDS_OF_TASK.values() for kind in kinds)


class ModelRouter:
    """Looks models up on the node at every request, so models that come and go are seen at once."""

    def __init__(self, node: Node, metrics: GatewayMetrics):
        self._node, self._metrics = node, metrics

    def generator(self, name: str | None) -> TextGenerator:
        """The model that answers prompts under `name`; 404 if there is none, 400 if it doesn't write text."""
        return cast(TextGenerator, self._for_task(name, "generate text"))

    def embedder(self, name: str | None) -> Embedder:
        """The model that embeds under `name`; 404 if there is none, 400 if it doesn't embed."""
        return cast(Embedder, self._for_task(name, "embed"))

    def tokenizing(self, name: str | None) -> Tokenizing:
        """Any model under `name`."""
        return self._engine(name if name is not None else self._only(ALL_KINDS))

    def info(self, name: str) -> ModelInfo:
        """What is known of the model that answers to `name` or to an alias, also while the node drains."""
        found = self._find(name)
        if found is None:
            raise self._unknown(name)
        return found

    def models(self) -> Sequence[ModelInfo]:
        return self._node.models()

    def _for_task(self, name: str | None, task: Task) -> Tokenizing:
        kinds = KINDS_OF_TASK[task]
        engine = self._engine(name if name is not None else self._only(kinds))
        if engine.info.kind in kinds:
            return engine
        able = self._names(kinds)
        instead = f" Models that do: {', '.join(able)}." if able else ""
        raise UnsupportedTaskError(
            f"The model `{engine.info.name}` is of kind {engine.info.kind}: it doesn't {task}.{instead}",
            param="model",
        )

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

    def _only(self, kinds: tuple[str, ...]) -> str:
        able = [info.name for info in self._node.models() if info.kind in kinds]
        if len(able) == 1:
            return able[0]
        choice = f"one of: {', '.join(able)}" if able else "but no served model does this"
        raise InvalidRequestError(f"`model` is required, {choice}.", param="model")

    def _names(self, kinds: tuple[str, ...] | None = None) -> list[str]:
        infos = [info for info in self._node.models() if kinds is None or info.kind in kinds]
        return [name for info in infos for name in (info.name, *info.aliases)]
