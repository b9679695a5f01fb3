"""The process that renders a request's own chat template: question on stdin, answer on stdout.

Imports nothing heavy: it starts for every such request.
"""

import json
import sys
from typing import Any

from onecard.engines.text.template_environment import compile_template


def answer() -> None:
    """Reads `{source, variables, limits}`, writes `{text}` or `{error}`, all JSON."""
    question = json.loads(sys.stdin.buffer.read())
    limits = question["limits"]
    _limit_this_process(limits["memory_bytes"], limits["cpu_seconds"])
    sys.stdout.buffer.write(json.dumps(_render(question, limits["output_bytes"])).encode())


def _render(question: dict[str, Any], output_bytes: int) -> dict[str, str]:
    try:
        text = compile_template(question["source"]).render(question["variables"])
    except MemoryError:
        return {"error": "rendering it needs too much memory"}
    except Exception as error:  # whatever a stranger's program raises is that program's own error
        return {"error": f"{type(error).__name__}: {str(error)[:2000]}"}
    if len(text) > output_bytes:
        return {"error": f"its text is longer than {output_bytes} bytes"}
    return {"text": text}


def _limit_this_process(memory_bytes: int, cpu_seconds: int) -> None:
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
