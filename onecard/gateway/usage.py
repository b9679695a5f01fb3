"""What a request has used, in tokens."""

from collections.abc import Sequence
from typing import Any

from onecard.engines.api import GenerationStream


def usage(streams: Sequence[GenerationStream]) -> dict[str, Any]:
    """OpenAI's `usage` over all prompts of a request, so far."""
    prompt = sum(len(stream.prompt_token_ids) for stream in streams)
    completion = sum(stream.completion_tokens for stream in streams)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(stream.cached_tokens for stream in streams)},
    }
