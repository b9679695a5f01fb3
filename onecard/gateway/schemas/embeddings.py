"""`POST /v1/embeddings`."""

from typing import Literal

from pydantic import Field

from onecard.engines.api import EmbedRequest
from onecard.gateway.schemas.base import MAX_INT32, Inputs, ModelRequest, Truncation


class EmbeddingRequest(ModelRequest):
    """Texts (or token ids) to be embedded."""

    input: Inputs
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, le=MAX_INT32, description="Only for models trained for it.")
    truncate_prompt_tokens: Truncation | None = Field(None, description="-1: cut at the model's own maximum.")
    add_special_tokens: bool = True

    def to_engine(self, request_id: str) -> EmbedRequest:
        return EmbedRequest(
            request_id=request_id,
            inputs=self.input,
            dimensions=self.dimensions,
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            add_special_tokens=self.add_special_tokens,
            priority=self.priority,
        )
