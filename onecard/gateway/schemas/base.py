"""What all requests share: unknown fields never fail, and `null` means the default."""

from collections.abc import Sequence
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from onecard.engines.api import InvalidRequestError
from onecard.gateway.schemas.bounded_json import check_bounds

MAX_INT32 = 2**31 - 1
MAX_TOKEN_IDS = 1 << 20
"""Of one text: some 20 ms each time that they are looked through, which nobody else can use."""

TokenIds = tuple[int, ...]


class RequestModel(BaseModel):
    """A JSON object from a client."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_means_default(cls, data: Any) -> Any:
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data


def _not_offered(value: Any, of: Any) -> Any:
    if value != "":
        raise InvalidRequestError(f"`{of.field_name}` is not offered yet; leave it out.", param=of.field_name)
    return value


NotOffered = Annotated[Any, BeforeValidator(_not_offered), Field(description="Not offered yet: 400.")]
"""Would change the answer: better refused than silently not done."""


class ModelRequest(RequestModel):
    """A request to a model."""

    model: str | None = Field(None, description="May be left out where only one served model does this.")
    user: str | None = Field(None, description="Accepted, not used.")
    priority: int = Field(0, ge=-MAX_INT32, le=MAX_INT32, description="Lower goes first.")


def _json_of_text(value: Any) -> Any:
    if not isinstance(value, str) or not value.lstrip().startswith(("{", "[")):
        return value
    check_bounds([value.encode("utf-8", "surrogatepass")])
    return orjson.loads(value)


JsonInForms = BeforeValidator(_json_of_text)
"""Marks what is an object: a form has it as text."""


def token_ids(value: Sequence[Any]) -> TokenIds:
    """`value` as token ids. Raises `ValueError` unless all are integers that could be ids."""
    # Sets and min/max run in C: a list of millions must not hold the event loop up.
    if not value:
        raise ValueError("a list of token ids must not be empty")
    if len(value) > MAX_TOKEN_IDS:
        raise ValueError(f"a list of token ids may have {MAX_TOKEN_IDS} of them")
    if set(map(type, value)) != {int} or min(value) < 0 or max(value) > MAX_INT32:
        raise ValueError("token ids must be integers from 0 up")
    return tuple(value)


def texts_or_tokens(value: Any) -> tuple[str | TokenIds, ...]:
    """A text, a list of texts, a list of token ids, or a list of such lists: always as a tuple of inputs."""
    wanted = "must be a string, a list of strings, a list of token ids, or a list of such lists"
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise ValueError(wanted)
    if not value:
        raise ValueError("must not be empty")
    kinds = set(map(type, value))
    if kinds == {str}:
        return tuple(value)
    if kinds == {int}:
        return (token_ids(value),)
    if kinds == {list}:
        return tuple(token_ids(row) for row in value)
    raise ValueError(wanted)


_STRING = {"type": "string"}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}

Inputs = Annotated[
    tuple[Any, ...],
    BeforeValidator(texts_or_tokens),
    WithJsonSchema(
        {
            "anyOf": [
                _STRING,
                {"type": "array", "items": _STRING, "minItems": 1},
                _IDS,
                {"type": "array", "items": _IDS, "minItems": 1},
            ]
        }
    ),
]
"""What `prompt` and `input` take."""


def _truncation(value: Any) -> Any:
    if value == 0:
        raise ValueError("must be -1 (the model's own maximum) or at least 1")
    return value


Truncation = Annotated[int, Field(ge=-1, le=MAX_INT32), BeforeValidator(_truncation)]
