"""`POST /rerank`, in Jina's form, which vLLM, Dify and Open WebUI speak."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from onecard.engines.api import RerankRequest
from onecard.gateway.schemas.base import MAX_INT32, ModelRequest, NotOffered, Truncation
from onecard.gateway.schemas.known import KnownInPooling
from onecard.gateway.schemas.responses import Answer, PromptUsage

MAX_DOCUMENTS = 2048
"""Each is read together with the query, so many empty ones in a short body would be much to read."""


def _document(value: Any) -> str:
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise ValueError("must be a string, or an object with its text as `text`")
    return text


Document = Annotated[
    str,
    BeforeValidator(_document),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
            ]
        }
    ),
]


class RerankBody(ModelRequest, KnownInPooling):
    """A query, and documents to be sorted by how well they answer it."""

    query: str = Field(min_length=1)
    documents: list[Document] = Field(min_length=1, max_length=MAX_DOCUMENTS)
    top_n: int = Field(0, ge=0, le=MAX_INT32, description="So many of the best; 0: all.")
    return_documents: bool = True
    max_tokens_per_doc: int | None = Field(
        None, ge=1, le=MAX_INT32, description="Longer documents are cut to so many tokens."
    )
    truncate_prompt_tokens: Truncation | None = Field(
        None, description="Longer pairs of query and document are cut; -1: at the model's own maximum."
    )
    use_activation: bool = Field(True, description="false: the head's own numbers, not 0 to 1.")
    raw_scores: bool = Field(False, description="TEI's word for `use_activation: false`.")
    instruction: NotOffered = None
    max_tokens_per_query: NotOffered = None

    def to_engine(self, request_id: str) -> RerankRequest:
        return RerankRequest(
            request_id=request_id,
            query=self.query,
            documents=tuple(self.documents),
            max_tokens_per_doc=self.max_tokens_per_doc,
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            raw_scores=self.raw_scores or not self.use_activation,
            priority=self.priority,
        )


class RerankedDocument(Answer):
    text: str


class RerankItem(Answer):
    index: int
    """Its place among the request's documents."""
    relevance_score: float
    document: RerankedDocument | None = None


class RerankAnswer(Answer):
    id: str
    object: Literal["list"]
    created: int
    model: str
    results: list[RerankItem]
    usage: PromptUsage
