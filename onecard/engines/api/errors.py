"""What can go wrong with a request, each with the HTTP status to answer with."""


class EngineError(Exception):
    """A request that can't be served. `param` names the field at fault, `code` is OpenAI's error code."""

    status = 500
    type = "InternalServerError"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.message, self.param, self.code = message, param, code


class InvalidRequestError(EngineError):
    """The request asks for something that makes no sense or is not offered."""

    status, type = 400, "BadRequestError"


class ContextLengthError(InvalidRequestError):
    """Prompt plus answer are longer than the model's context. Clients match on the message and code."""

    def __init__(self, max_model_len: int, prompt_tokens: int, max_tokens: int = 0, param: str = "messages"):
        asked = f"{max_tokens} in the completion" if max_tokens else "with at least 1 in the completion"
        super().__init__(
            f"This model's maximum context length is {max_model_len} tokens. However, you requested "
            f"{prompt_tokens + max(max_tokens, 1)} tokens ({prompt_tokens} in the {param}, {asked}). "
            f"Please reduce the length of the {param} or completion.",
            param=param,
            code="context_length_exceeded",
        )


class ModelNotFoundError(EngineError):
    status, type = 404, "NotFoundError"


class UnsupportedTaskError(EngineError):
    """The model exists but doesn't do that (an embedding asked of a chat model)."""

    status, type = 400, "BadRequestError"


class QueueFullError(EngineError):
    """Too many requests wait; the client should come again in `retry_after` seconds. `reason`: in a word, for
    metrics."""

    status, type = 503, "ServiceUnavailableError"
    retry_after = 1
    reason = "queue_full"


class ShuttingDownError(QueueFullError):
    """The server is draining."""

    retry_after = 5
    reason = "draining"


class EngineFailedError(EngineError):
    """A step raised; the request is lost, the engine goes on."""


class StartingError(QueueFullError):
    """The server's models are still being fetched or loaded."""

    retry_after = 5
    reason = "starting"


class ModelUnavailableError(QueueFullError):
    """The model can't serve now: its memory can't be had, it has failed, or it leaves the registry."""

    reason = "unavailable"


class WakeTimeoutError(ModelUnavailableError):
    """The model is not awake within the registry's `server.wake_timeout`."""

    reason = "wake_timeout"


class InvalidRegistryError(EngineError):
    """A registry that can't be served; the message says where and what to write instead."""

    status, type = 400, "BadRequestError"


def explain(error: Exception) -> str:
    """The error's own sentence; with its type where it isn't ours (a KeyError says nothing but the key)."""
    message = str(error).strip()
    if is_ours(error) and message:
        return message
    return f"{type(error).__name__}: {message}".rstrip(": ")


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust has panicked. PyO3 raises a `BaseException` of a type that nobody can
    import, so that no `except Exception` sees it; it is an error of one call all the same."""
    return type(error).__module__ == "pyo3_runtime"


def is_ours(error: Exception) -> bool:
    """Whether the error was raised to be read by people."""
    return type(error).__module__.startswith("onecard.")
