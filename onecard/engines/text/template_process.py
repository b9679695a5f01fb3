"""Renders a request's own chat template in a process with limits (`template_environment.answer`)."""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from onecard.engines.api import InvalidRequestError


@dataclass(frozen=True)
class TemplateLimits:
    """What a stranger's template may use. Bytes and seconds."""

    source_bytes: int = 64 << 10
    output_bytes: int = 8 << 20
    memory_bytes: int = 512 << 20
    cpu_seconds: int = 2


def render_in_process(source: str, variables: dict[str, Any], limits: TemplateLimits) -> str:
    """Blocks for some 100 ms. Raises `InvalidRequestError` for whatever the template does wrong."""
    if len(source.encode("utf-8", "surrogatepass")) > limits.source_bytes:
        raise _refused(f"it is longer than {limits.source_bytes} bytes")
    question = json.dumps({"source": source, "variables": variables, "limits": asdict(limits)})
    command = [sys.executable, "-I", "-c", _BOOTSTRAP, *sys.path]
    try:
        answer = subprocess.run(
            command, input=question.encode(), capture_output=True, timeout=limits.cpu_seconds * 5, check=False
        )
        result = json.loads(answer.stdout)
    except (subprocess.TimeoutExpired, ValueError) as error:
        raise _refused(
            f"rendering it took more than {limits.cpu_seconds} s or {limits.memory_bytes >> 20} MiB"
        ) from error
    if "error" in result:
        raise _refused(result["error"])
    return result["text"]


def _refused(reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"The request's chat template can't be used: {reason}", param="chat_template")


# The child sees the parent's import path (an editable install included), and nothing of its environment.
_BOOTSTRAP = """
import sys
sys.path[:] = sys.argv[1:]
from onecard.engines.text.template_environment import answer
answer()
"""
