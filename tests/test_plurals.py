"""What people read says `1 request` and not `1 requests`: a count and its noun are `counted`."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from onecard.engines.api import QueueFullError
from onecard.gateway.admission import Admission
from onecard.registry.units import counted

SOURCE = Path(__file__).parents[1] / "onecard"

NOUNS = "requests|reqs|tokens|pages|blocks|models|sequences|graphs|steps|files|problems|texts|seconds"
COUNTED = re.compile(rf"(\x00|%d)( of the)? ({NOUNS})\b(?!/s)")

NEVER_ONE = {
    "api/errors.py": "OpenAI's sentence, which clients read",
    "oneshot/engine.py": "the same sentence",
    "text/fit.py": "the same sentence",
    "text/vocabulary.py": "no vocabulary has one token",
    "answers/generation.py": "a limit",
    "admission.py": "only where there are several, and what is tested below",
    "memory_report.py": "a range",
    "device_loop.py": "a constant",
    "checkpoint.py": "of an index that names several",
    "problems.py": "only where there are several",
    "plan_view.py": "columns of a table",
    # What a person reads here is a traceback: the books don't add up, or a caller is wrong.
    "oneshot/core.py": "internal",
    "accounts.py": "internal",
    "block_pool.py": "internal",
    "owned_pages.py": "internal",
    "page_pool.py": "internal",
    "homes.py": "a total beside a count",
}


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every text of a module, with a NUL where a value goes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def test_no_number_stands_before_a_plural() -> None:
    found = [
        f"{path.relative_to(SOURCE)}:{line}: {text!r}"
        for path in sorted(SOURCE.rglob("*.py"))
        if not any(str(path).endswith(name) for name in NEVER_ONE)
        for line, text in texts(ast.parse(path.read_text(encoding="utf-8")))
        if COUNTED.search(text)
    ]
    assert not found, "say counted(number, 'request'), or why it is never one"


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0 requests"), (1, "1 request"), (2, "2 requests"), (2048, "2048 requests")]
)
def test_a_number_and_its_noun(number: int, said: str) -> None:
    assert counted(number, "request") == said
    assert counted(number, "request is", "requests are").startswith(said)


def test_one_waiting_request_is_one() -> None:
    admission = Admission(1, _Rejections())  # type: ignore[arg-type]
    with admission.admit("chat"), pytest.raises(QueueFullError) as refused, admission.admit("chat"):
        pass
    assert str(refused.value).startswith("1 request is waiting for the model `chat`")


class _Rejections:
    def rejected(self, model: str, reason: str) -> None:
        """Nobody counts here."""
