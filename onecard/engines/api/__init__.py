"""All that the gateway may see of the engines: requests, results, Protocols, errors, statistics.

Nothing here imports torch. The gateway talks to a `Node`; a node hands out engines, each with the Protocols
of its tasks (`TextGenerator`, `Embedder`); they raise subclasses of `EngineError`, whose `status` is the HTTP
status to answer with. What is imported here is what may be seen.
"""

from onecard.engines.api.content import AudioPart, ChatPrompt, ImagePart, Part, TextPart, VideoPart
from onecard.engines.api.control import (
    CardLedger,
    ModelControl,
    ModelLedger,
    NodeControl,
    ReloadReport,
    SleepLevel,
)
from onecard.engines.api.embedding import Embedder, EmbedRequest, EmbedResult
from onecard.engines.api.errors import (
    ContextLengthError,
    EngineError,
    EngineFailedError,
    InvalidRegistryError,
    InvalidRequestError,
    ModelNotFoundError,
    ModelUnavailableError,
    QueueFullError,
    ShuttingDownError,
    StartingError,
    UnsupportedTaskError,
    WakeTimeoutError,
)
from onecard.engines.api.generation import (
    FinishReason,
    GenerateRequest,
    GenerationStream,
    SamplingParams,
    TextGenerator,
    TokenChunk,
    TokenLogprob,
)
from onecard.engines.api.health import CardHealth, CardProcess, ThrottleReason
from onecard.engines.api.model import ModelInfo, Task, Tokenizing
from onecard.engines.api.node import CacheConfig, CardStatus, ModelState, ModelStatus, Node, NodeStatus
from onecard.engines.api.rerank import Reranker, RerankRequest, RerankResult
from onecard.engines.api.stats import LoadProgress, RequestStats, StatsSink, StepStats
