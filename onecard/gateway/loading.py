"""What stands for a node until there is one: it knows of its models how far they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from onecard.engines.api import ModelInfo, ModelStatus, NodeStatus, StartingError
from onecard.registry.spec import Registry

Stage = Literal["waiting", "fetching", "reading", "loading", "capturing", "loaded", "asleep"]
"""`reading`: headers, for the plan. `asleep`: it is loaded when somebody asks for it."""
Unit = Literal["bytes", "graphs"]
AT_WORK: tuple[Stage, ...] = ("fetching", "reading", "loading", "capturing")


@dataclass
class ModelStart:
    """How far a model is. `done` of `total`: bytes or captured graphs; 0 of 0 where nobody knows."""

    model: str
    stage: Stage = "waiting"
    done: int = 0
    total: int = 0

    @property
    def progress(self) -> float | None:
        """0..1, None where nobody knows."""
        return min(1.0, self.done / self.total) if self.total else None

    def __str__(self) -> str:
        share = "" if self.progress is None else f" ({int(100 * self.progress)} %)"
        return f"{self.stage} {self.model}{share}"


class LoadingNode:
    """Implements `api.Node` for a server that listens already: all requests raise `StartingError`.

    Whoever fetches and loads reports here, from any one thread at a time; everybody else only reads.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.starts = {model.name: ModelStart(model.name) for model in registry.models}

    # --- reports --------------------------------------------------------------------------------------------

    def turn(self, model: str, stage: Stage, total: int = 0) -> None:
        """The model has come to `stage`, of which nothing of `total` is done yet."""
        self.starts[model] = ModelStart(model, stage, 0, total)

    def advance(self, model: str, n: int) -> None:
        """So much more of its stage is done."""
        self.starts[model].done += n

    def loaded(self, model: str, done: int, total: int, unit: Unit = "bytes") -> None:
        """A `LoadProgress`. Models load one after another: the one before is done with."""
        for before in list(self.starts.values()):
            if before.model != model and before.stage in ("loading", "capturing"):
                self.turn(before.model, "loaded")
        stage: Stage = "loading" if unit == "bytes" else "capturing"
        self.starts[model] = ModelStart(model, stage, done, total)

    def progress(self) -> list[dict[str, Any]]:
        """How far each model is, as JSON; `progress` 0..1, None where nobody knows."""
        starts = list(self.starts.values())
        return [{"model": one.model, "stage": one.stage, "progress": one.progress} for one in starts]

    # --- what is asked of a node ----------------------------------------------------------------------------

    def refuse(self) -> NoReturn:
        """What whoever comes too early hears."""
        now = [str(one) for one in list(self.starts.values()) if one.stage in AT_WORK]
        doing = f": {', '.join(now)}" if now else ""
        raise StartingError(f"The server is starting{doing}. Please try again in a few seconds.")

    def models(self) -> Sequence[ModelInfo]:
        """None is served yet."""
        return ()

    def engine(self, name: str) -> NoReturn:
        self.refuse()

    def status(self) -> NodeStatus:
        cards = {model.name: self._registry.card_of(model).name for model in self._registry.models}
        models = tuple(
            ModelStatus(model.name, model.kind, cards[model.name], "loading", 0, 0, 0, 0, 0, 0, 0, 0)
            for model in self._registry.models
        )
        return NodeStatus("starting", (), models)

    def begin_drain(self) -> None:
        """Nothing runs."""

    async def drained(self) -> None:
        """Nothing runs."""

    async def stop(self) -> None:
        """Nothing runs."""
