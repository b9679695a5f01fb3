"""`POST /v1/embeddings`."""

from typing import Literal

from pydantic import Field, model_validator

from onecard.engines.api import EmbedRequest, InvalidRequestError
from onecard.gateway.schemas.base import MAX_INT32, Inputs, ModelRequest, Truncation
from onecard.gateway.schemas.known import KnownInEmbeddings


class EmbeddingRequest(ModelRequest, KnownInEmbeddings):
    """Texts (or token ids) to be embedded."""

    input: Inputs
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, le=MAX_INT32, description="Only for models trained for it.")
    truncate_prompt_tokens: Truncation | None = Field(None, description="-1: cut at the model's own maximum.")
    add_special_tokens: bool = True
    normalize: bool | None = Field(None, description="Vectors of length 1; default: as the model says.")
    use_activation: bool | None = Field(None, description="vLLM's word for `normalize`.")

    @model_validator(mode="after")
    def _one_wish(self) -> "EmbeddingRequest":
        if None not in (self.normalize, self.use_activation) and self.normalize != self.use_activation:
            raise InvalidRequestError(
                "`normalize` and `use_activation` mean the same: send one of them.", param="use_activation"
            )
        return self

    def to_engine(self, request_id: str) -> EmbedRequest:
        return EmbedRequest(
            request_id=request_id,
            inputs=self.input,
            dimensions=self.dimensions,
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            add_special_tokens=self.add_special_tokens,
            normalize=self.use_activation if self.normalize is None else self.normalize,
            priority=self.priority,
        )
