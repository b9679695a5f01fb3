"""The Jinja environment that chat templates are written for: that of `apply_chat_template`.

Also what the process runs that renders a request's own template: `answer`. It starts for every such request,
so nothing heavy is imported here.
"""

import json
import sys
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class GenerationTag(Extension):
    """`{% generation %}` marks the assistant's words for training masks; to a server it is transparent."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def compile_template(source: str) -> jinja2.Template:
    """Raises `jinja2.TemplateSyntaxError`."""
    return _environment().from_string(source)


def variables_of(source: str) -> frozenset[str]:
    """The names that a template reads. Raises `jinja2.TemplateSyntaxError`."""
    named = _environment().parse(source).find_all(nodes.Name)
    return frozenset(name.name for name in named if name.ctx == "load")


def answer() -> None:
    """Reads `{source, variables, limits}` from stdin, writes `{text}` or `{error}` to stdout, all JSON."""
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


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which no model was trained on."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)
