"""The Jinja environment that chat templates are written for: that of `apply_chat_template`.

Also what the processes run that render them: `serve`. Nothing heavy is imported here.
"""

import json
import socket
import sys
from datetime import datetime
from typing import Any, BinaryIO, NoReturn, cast

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_COMPILED = 8
"""Templates that a process keeps."""


class GenerationTag(Extension):
    """`{% generation %}` marks the assistant's words for training masks; to a server it is transparent."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def variables_of(source: str) -> frozenset[str]:
    """The names that a template reads. Raises `jinja2.TemplateSyntaxError`."""
    named = _environment().parse(source).find_all(nodes.Name)
    return frozenset(name.name for name in named if name.ctx == "load")


def check_syntax(source: str) -> None:
    """Raises `jinja2.TemplateSyntaxError`. Parses only: to compile is to compute what is constant in it."""
    try:
        _environment().parse(source)
    except RecursionError:
        raise jinja2.TemplateSyntaxError("its blocks are nested too deeply", 1) from None
    except ValueError as error:  # a number of thousands of digits
        raise jinja2.TemplateSyntaxError(str(error), 1) from None


# --- in the process ---------------------------------------------------------------------------------------


def serve() -> None:
    """Answers questions on stdin, a socket, one after the other, until it closes.

    A question is a frame of JSON, `{source, variables, limits}`. An answer is a frame of a letter (`T`: the
    text follows; `R`: the template refuses, `F`: it fails, and the reason follows) and of UTF-8. A frame is 8
    bytes that say how many follow.
    """
    with socket.socket(fileno=sys.stdin.fileno()) as asker, asker.makefile("rwb") as stream:
        compiled: dict[str, jinja2.Template] = {}
        while (question := _read_frame(cast(BinaryIO, stream))) is not None:
            letter, text = _answer(question, compiled)
            del question
            body = text.encode("utf-8", "strict" if letter == b"T" else "replace")
            stream.write((len(body) + 1).to_bytes(8, "big") + letter + body)
            stream.flush()
            if letter == b"F":
                return  # what is left of its memory is anybody's guess


def _read_frame(stream: BinaryIO) -> bytes | None:
    head = stream.read(8)
    return stream.read(int.from_bytes(head, "big")) if len(head) == 8 else None


def _answer(question: bytes, compiled: dict[str, jinja2.Template]) -> tuple[bytes, str]:
    try:
        asked = json.loads(question)
        limits = asked["limits"]
        _limit_this_process(limits["memory_bytes"], limits["cpu_seconds"])
        text = _template(asked["source"], compiled).render(asked["variables"])
        if len(text) > limits["output_bytes"]:
            return b"F", f"its text is longer than {limits['output_bytes']} characters"
        text.encode()
        return b"T", text
    except MemoryError:
        return b"F", "rendering it needs too much memory"
    except UnicodeEncodeError:
        return b"R", "the text holds a lone surrogate (half of a character)"
    except jinja2.TemplateSyntaxError as error:
        return b"R", f"{type(error).__name__}: {str(error)[:2000]}"
    except jinja2.TemplateError as error:
        return b"R", str(error)[:2000]
    except Exception as error:  # whatever a stranger's program raises is that program's own error
        return b"R", f"{type(error).__name__}: {str(error)[:2000]}"


def _template(source: str, compiled: dict[str, jinja2.Template]) -> jinja2.Template:
    if source not in compiled:
        if len(compiled) >= MAX_COMPILED:
            compiled.clear()
        compiled[source] = _environment().from_string(source)
    return compiled[source]


def _limit_this_process(memory_bytes: int, cpu_seconds: int) -> None:
    """From now on: it ends by itself, also where nobody is left to end it."""
    if sys.platform == "win32":
        return
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    until = int(used.ru_utime + used.ru_stime) + cpu_seconds + 1
    for limit, value in (
        (resource.RLIMIT_CPU, until),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(limit)[1]  # the server's own, which may be lower
        resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


# --- the environment --------------------------------------------------------------------------------------


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
