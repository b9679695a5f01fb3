"""All that the gateway may see of the engines: requests, results, Protocols, errors, statistics.

Nothing here imports torch. The gateway talks to a `Node`; a node hands out `TextGenerator`s and
`Embedder`s; both raise subclasses of `EngineError`, whose `status` is the HTTP status to answer with.
"""

from onecard.engines.api.control import (
    CardLedger,
    ModelLedger,
    NodeControl,
    ReloadReport,
    SleepLevel,
)
from onecard.engines.api.engine import (
    Embedder,
    EmbedRequest,
    EmbedResult,
    TextGenerator,
)
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
    UnsupportedTaskError,
    WakeTimeoutError,
)
from onecard.engines.api.generation import (
    ChatPrompt,
    FinishReason,
    GenerateRequest,
    GenerationStream,
    SamplingParams,
    TokenChunk,
    TokenLogprob,
)
from onecard.engines.api.health import (
    CardHealth,
    CardProcess,
    ThrottleReason,
)
from onecard.engines.api.model import (
    ModelInfo,
    Task,
    Tokenizing,
)
from onecard.engines.api.node import (
    CacheConfig,
    CardStatus,
    ModelState,
    ModelStatus,
    Node,
    NodeStatus,
)
from onecard.engines.api.stats import (
    LoadProgress,
    RequestStats,
    StatsSink,
    StepStats,
)

__all__ = [
    "CacheConfig",
    "CardHealth",
    "CardLedger",
    "CardProcess",
    "CardStatus",
    "ChatPrompt",
    "ContextLengthError",
    "EmbedRequest",
    "EmbedResult",
    "Embedder",
    "EngineError",
    "EngineFailedError",
    "FinishReason",
    "GenerateRequest",
    "GenerationStream",
    "InvalidRegistryError",
    "InvalidRequestError",
    "LoadProgress",
    "ModelInfo",
    "ModelLedger",
    "ModelNotFoundError",
    "ModelState",
    "ModelStatus",
    "ModelUnavailableError",
    "Node",
    "NodeControl",
    "NodeStatus",
    "QueueFullError",
    "ReloadReport",
    "RequestStats",
    "SamplingParams",
    "ShuttingDownError",
    "SleepLevel",
    "StatsSink",
    "StepStats",
    "Task",
    "TextGenerator",
    "ThrottleReason",
    "TokenChunk",
    "TokenLogprob",
    "Tokenizing",
    "UnsupportedTaskError",
    "WakeTimeoutError",
]
