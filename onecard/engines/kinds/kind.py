"""What a kind of model is: a value. Adding one is a file beside this one and a line in `KINDS`."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from onecard.engines.api import ModelInfo, Task, Tokenizing
from onecard.engines.lifecycle.card_model import CardModel, Placement
from onecard.engines.memory.card_plan import CardFacts, ModelNeeds
from onecard.engines.step.sizes import StepSize
from onecard.registry.spec import ModelSpec


class Headers(Protocol):
    """What a model's files say of it; a kind's own dataclass."""

    @property
    def max_model_len(self) -> int:
        """The longest text that it may be given, with its answer."""
        ...


@dataclass(frozen=True)
class Blueprint:
    """A model before it is built: what the registry says of it, its files, and what their headers say.

    `size`: the largest steps that it is built for.
    """

    spec: ModelSpec
    path: Path
    headers: Any
    needs: ModelNeeds
    size: StepSize

    def info(self, tasks: frozenset[Task], generation_config: dict[str, Any] | None = None) -> ModelInfo:
        """The card of the engine that is built from it now."""
        spec = self.spec
        made = ModelInfo(
            name=spec.name,
            kind=spec.kind,
            root=spec.source,
            created=int(time.time()),
            max_model_len=self.headers.max_model_len,
            tasks=tasks,
            generation_config=generation_config or {},
        )
        return following(made, spec)


def following(info: ModelInfo, spec: ModelSpec) -> ModelInfo:
    """`info` with what a changed registry may change in it while the model runs."""
    sampling = info.generation_config | spec.sampling.given()
    return replace(info, aliases=spec.aliases, default_sampling=sampling)


class Kind(Protocol):
    """Stateless: all that it knows of a model is what it is given."""

    tasks: frozenset[Task]
    """What its engines do: each is a Protocol of `engines.api` that what it builds implements."""

    def read(self, spec: ModelSpec, path: Path) -> Headers:
        """Headers only. Refuses, by name, what doesn't fit the kind."""
        ...

    def step_size(self, spec: ModelSpec, device_type: str, max_model_len: int) -> StepSize: ...

    def needs(self, spec: ModelSpec, headers: Any, size: StepSize, facts: CardFacts) -> ModelNeeds:
        """Bytes of weights, workspace, KV blocks and graphs: the plan's input."""
        ...

    def build(self, blueprint: Blueprint, place: Placement) -> tuple[Tokenizing, CardModel]:
        """The engine that the gateway calls, and the model, not yet known to its card: nothing there is
        touched. Any thread may call it. Raises what tokenizers and templates that can't be read raise."""
        ...
