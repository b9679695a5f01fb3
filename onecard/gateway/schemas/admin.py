"""What operators send and get: models asleep and awake, a reload, the live ledger."""

from typing import Literal

from pydantic import Field

from onecard.engines.api import CardLedger, SleepLevel
from onecard.gateway.schemas.base import RequestModel
from onecard.gateway.schemas.responses import Answer

Wakefulness = Literal["awake", "sleeping"]


class SleepRequest(RequestModel):
    """May be left out; `level` may stand in the query instead, which wins."""

    level: SleepLevel = Field(1, description="1: weights stay in host memory; 2: they are dropped.")


class SleepAnswer(Answer):
    status: Literal["sleeping"]
    level: SleepLevel = Field(
        description="At which the model sleeps; it may be deeper than asked for. Of several: the lightest."
    )


class WakeAnswer(Answer):
    status: Wakefulness
    tags: list[str] | None
    models: dict[str, Wakefulness] | None = Field(
        None, description="Each model in the end, where all were to wake up and not all are awake."
    )


class ModelSleepAnswer(SleepAnswer):
    model: str


class ModelWakeAnswer(Answer):
    model: str
    status: Literal["awake"]


class IsSleepingAnswer(Answer):
    is_sleeping: bool


class ReloadAnswer(Answer):
    added: list[str]
    removed: list[str]
    changed: list[str]
    notes: list[str]


class PoolAnswer(Answer):
    cards: list[CardLedger]
