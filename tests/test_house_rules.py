"""The shape of the house, held by the imports themselves: see `docs/architecture.md` for the why.

    gateway -> engines/api, registry               kernels, registry -> nothing of ours
    engines -> kernels, registry/spec.py           models -> layers -> kernels
    llm, encoder -> models, text, memory, runtime  memory knows no model

Imports inside functions count too, except where a rule says so; those for the type checker alone, which never
run, count as such.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "onecard").rglob("*.py"))
MAX_LINES = 350

ENGINE_PARTS = {
    "api": {"api"},
    "memory": {"memory"},
    "runtime": {"runtime", "memory"},
    "layers": {"layers"},
    "models": {"models", "layers", "weights.gguf"},
    "weights": {"weights", "models", "layers", "memory.arena", "memory.homes"},
    "text": {"text", "weights"},
    "lifecycle": {"lifecycle", "weights", "memory", "runtime", "step"},
    "step": {"step", "text", "weights", "memory", "runtime"},
    "paged": {"paged", "step", "lifecycle", "models", "layers", "weights", "text", "memory", "runtime"},
    "oneshot": {"oneshot", "step", "lifecycle", "models", "layers", "weights", "text", "memory", "runtime"},
    "kinds": {
        "kinds",
        "paged",
        "oneshot",
        "step",
        "lifecycle",
        "models",
        "layers",
        "weights",
        "text",
        "memory",
        "runtime",
    },
    "node": {"node", "kinds", "paged", "oneshot", "step", "lifecycle", "models", "memory", "runtime"},
}
"""What each part of `engines` may import of the others. `api` is open to all, the node to none."""

COMPOSITION_ROOTS = ("onecard.engines.node.factory", "onecard.engines.node.environment")
"""All of the engines that the CLI may import, and only inside functions."""

PURE_REGISTRY = (
    "onecard.registry.spec",
    "onecard.registry.units",
    "onecard.registry.changes",
    "onecard.registry.plain_files",
)
"""What engines may see of the registry: no network, and of files only how one is read."""

TORCH_FREE_MEMORY = {
    "page_pool",
    "reclaim",
    "block_pool",
    "card_plan",
    "homes",
    "plan",
    "plan_checks",
    "prefixes",
}


PURE_LIFECYCLE = ("onecard.engines.lifecycle.decide", "onecard.engines.lifecycle.table")
PURE_LIFECYCLE_USES = {"api", "memory.homes", "lifecycle.table", "lifecycle.eviction"}
"""Who sleeps for whom is decided without clocks, threads or weights."""


@dataclass(frozen=True)
class Import:
    module: str
    line: int
    in_function: bool


def module_name(path: Path) -> str:
    """`onecard/engines/api.py` -> `onecard.engines.api`; a package is its own `__init__`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path) for path in FILES}


def imports(source: str) -> list[Import]:
    """Every module a source imports; `from package import module` counts as `package.module`."""
    return list(_imports(ast.parse(source), in_function=False))


def _imports(node: ast.AST, in_function: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, in_function) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            package = "." * child.level + (child.module or "")
            for alias in child.names:
                full = f"{package}.{alias.name}"
                yield Import(full if full in MODULES else package, child.lineno, in_function)
        else:
            for_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            inside = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or for_types
            yield from _imports(child, inside)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def forbidden(importer: str, used: Import) -> str | None:
    """Why `importer` may not import `used`; None when it may."""
    if used.module.startswith("."):
        return "say the whole name: onecard.part.file"
    if within(used.module, "pickle"):
        return "pickles run code: read safetensors or GGUF"
    if within(used.module, "triton"):
        return _triton(importer, used)
    if within(importer, "onecard.registry"):
        return _leaf(importer, "onecard.registry", used, {"torch", "aiohttp"})
    if within(importer, "onecard.kernels"):
        return _leaf(importer, "onecard.kernels", used, set())
    if within(importer, "onecard.gateway"):
        return _gateway(importer, used)
    if within(importer, "onecard.engines"):
        return _engines(importer, used)
    return None


def _triton(importer: str, used: Import) -> str | None:
    if within(importer, "onecard.kernels.triton") or used.in_function:
        return None
    return "import triton inside the function that needs it: the project runs without it"


def _leaf(importer: str, package: str, used: Import, banned: set[str]) -> str | None:
    if within(used.module, "onecard") and not within(used.module, package):
        return f"{package} imports nothing of ours outside itself"
    if used.module.split(".")[0] in banned:
        return f"{package} is pure data"
    return None


def _gateway(importer: str, used: Import) -> str | None:
    if within(used.module, "torch"):
        return "the gateway never imports torch"
    if not within(used.module, "onecard.engines") or within(used.module, "onecard.engines.api"):
        return None
    if within(importer, "onecard.gateway.cli") and used.in_function and used.module in COMPOSITION_ROOTS:
        return None
    return "the gateway sees engines/api only; the CLI may import the factory inside a function"


def _engines(importer: str, used: Import) -> str | None:
    if within(used.module, "onecard.gateway"):
        return "engines know nothing of HTTP"
    if within(used.module, "onecard.registry") and used.module not in PURE_REGISTRY:
        return "engines see of the registry its specs, units and how a file is read"
    part = importer.split(".")[2] if importer.count(".") >= 2 else ""
    if part == "memory" and importer.rpartition(".")[2] in TORCH_FREE_MEMORY and within(used.module, "torch"):
        return "the pools and the plan are plain Python"
    if part == "api" and within(used.module, "torch"):
        return "the gateway imports this file: no torch"
    if part not in ENGINE_PARTS or not within(used.module, "onecard.engines"):
        return None
    target = used.module.removeprefix("onecard.engines.")
    if importer in PURE_LIFECYCLE and not any(within(target, allowed) for allowed in PURE_LIFECYCLE_USES):
        return f"{importer} only decides"
    if within(target, "api") or any(within(target, allowed) for allowed in ENGINE_PARTS[part]):
        return None
    return f"engines/{part} may import of the engines only: api, {', '.join(sorted(ENGINE_PARTS[part]))}"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    importer = module_name(path)
    wrong = [
        f"{path.relative_to(ROOT)}:{used.line}: {used.module}: {reason}"
        for used in imports(path.read_text())
        if (reason := forbidden(importer, used))
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_no_global_statements() -> None:
    """Several engines and servers share a process: state belongs to objects."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Global)
    ]
    assert not wrong


def test_files_fit_the_eye() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert not {path: lines for path, lines in lengths.items() if lines > MAX_LINES}


def test_every_part_of_engines_has_a_rule() -> None:
    parts = {path.name for path in (ROOT / "onecard/engines").iterdir() if (path / "__init__.py").exists()}
    assert parts == ENGINE_PARTS.keys()


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("onecard.gateway.app", "import torch"),
        ("onecard.gateway.app", "def f():\n    from onecard.engines.node.factory import start_node"),
        ("onecard.gateway.cli.serve", "from onecard.engines.node.factory import start_node"),
        ("onecard.gateway.cli.serve", "def f():\n    from onecard.engines.paged import engine"),
        ("onecard.registry.loader", "import torch.nn"),
        ("onecard.registry.loader", "from onecard.engines import api"),
        ("onecard.kernels.rotary", "from onecard.registry.spec import DType"),
        ("onecard.kernels.rotary", "import triton"),
        ("onecard.engines.memory.page_pool", "import torch"),
        ("onecard.engines.memory.arena", "from onecard.engines.models import decoder"),
        ("onecard.engines.layers.linear", "from onecard.engines.models.config import DecoderConfig"),
        ("onecard.engines.models.llama", "from onecard.engines.paged.engine import GenerationEngine"),
        ("onecard.engines.models.llama", "from onecard.engines.weights import loader"),
        ("onecard.engines.paged.engine", "from onecard.engines.node.factory import start_node"),
        ("onecard.engines.paged.engine", "from onecard.registry.loader import load_registry"),
        ("onecard.engines.weights.loader", "import pickle"),
        ("onecard.engines.lifecycle.decide", "from onecard.engines.lifecycle import gate"),
        ("onecard.engines.node.local_node", "from . import api"),
    ],
)
def test_the_rules_see_what_is_wrong(importer: str, source: str) -> None:
    assert any(forbidden(importer, used) for used in imports(source))


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        (
            "onecard.gateway.app",
            "from onecard.engines.api import Node\nfrom onecard.registry.spec import Registry",
        ),
        ("onecard.gateway.cli.serve", "def f():\n    from onecard.engines.node.factory import start_node"),
        (
            "onecard.gateway.cli.serve",
            "if TYPE_CHECKING:\n    from onecard.engines.node.factory import CardPlan",
        ),
        ("onecard.kernels.triton.rotary", "import triton\nimport triton.language as tl"),
        ("onecard.kernels.rotary", "def f():\n    import triton"),
        ("onecard.engines.memory.arena", "import torch"),
        ("onecard.engines.paged.engine", "from onecard.engines.memory.block_pool import BlockPool"),
        ("onecard.engines.node.factory", "from onecard.engines.paged.engine import GenerationEngine"),
    ],
)
def test_the_rules_allow_what_is_right(importer: str, source: str) -> None:
    assert not [reason for used in imports(source) if (reason := forbidden(importer, used))]


def test_no_two_files_import_each_other_in_a_circle():
    """`graphlib` names the files of a circle; move what both need into a third file."""
    graph = {
        module_name(path): {used.module for used in imports(path.read_text()) if used.module in MODULES}
        for path in FILES
        if path.name != "__init__.py"
    }
    TopologicalSorter(graph).prepare()
