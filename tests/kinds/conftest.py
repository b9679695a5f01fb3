"""A reranker's real weights, random ones, and nodes that serve them."""

import asyncio
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from cross_encoders import registry_of, write_bert, write_xlm_roberta

from onecard.engines.api import RerankRequest, RerankResult
from onecard.registry.sources.base import cache_root

CONVERTING = ("onnx", "onnxruntime", "ml_dtypes", "protobuf", "flatbuffers")
"""What it takes to read the weights' own format, and nothing else here needs."""


@pytest.fixture(scope="session")
def reranker_path(request: pytest.FixtureRequest) -> Path:
    """A small cross-encoder that somebody trained, from `$ONECARD_TEST_MODELS`, the cache, or built once by
    the script in `../shared`."""
    if given := os.environ.get("ONECARD_TEST_MODELS"):
        return Path(given) / "reranker"
    built = cache_root() / "tests" / "reranker"
    if not (built / "config.json").is_file():
        script = request.getfixturevalue("shared_folder") / "models" / "fetch.sh"
        if not script.is_file():
            pytest.skip("the folder `shared` has no script that builds the reranker")
        built.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=built.parent) as scratch:
            _build(script, Path(scratch))
            if not built.exists():  # another session may have been as fast
                (Path(scratch) / built.name).rename(built)
    return built


def _build(script: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as libraries:
        environment = {**os.environ, "PY": sys.executable}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment.get('PATH', '')}"
        if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")):
            install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", libraries]
            _run([*install, *CONVERTING], environment)
            paths = [libraries, environment.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        _run(["bash", str(script), str(folder), "reranker"], environment)


def _run(command: list[str], environment: dict[str, str]) -> None:
    try:
        subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=240)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        pytest.skip(f"the reranker's weights can't be built here: {said[-1] if said else error}")


@pytest.fixture(scope="session")
def bert_path(minilm_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random, with the demo's tokenizer, which gives the second text's tokens a type of their own."""
    folder = tmp_path_factory.mktemp("bert")
    write_bert(folder, minilm_path)
    return folder


@pytest.fixture(scope="session")
def xlm_roberta_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random; needs nothing from anywhere."""
    folder = tmp_path_factory.mktemp("xlm-roberta")
    write_xlm_roberta(folder)
    return folder


class Judge:
    """A node that serves one reranker."""

    def __init__(self, live: Any, folder: Path):
        self.live, self.folder = live, folder

    @property
    def node(self) -> Any:
        return self.live.node

    @property
    def engine(self) -> Any:
        return self.live.node.engine("judge")

    def rerank(self, query: str, *documents: str, **fields: Any) -> RerankResult:
        (result,) = self.all_at_once((query, documents), **fields)
        if isinstance(result, BaseException):
            raise result
        return result

    def all_at_once(self, *asked: tuple[str, tuple[str, ...]], **fields: Any) -> list[Any]:
        """Results and errors of several requests."""

        async def gather() -> list[Any]:
            requests = (RerankRequest("r", query, documents, **fields) for query, documents in asked)
            return await asyncio.gather(*map(self.engine.rerank, requests), return_exceptions=True)

        return self.live.call(gather())


@pytest.fixture(scope="session")
def open_judge(open_live_node: Callable[..., Any]) -> Callable[..., AbstractContextManager[Judge]]:
    """`open_judge(folder, max_num_seqs=2, ...)`"""

    @contextmanager
    def open_node(folder: Path, warm_up: bool = False, **engine: Any) -> Iterator[Judge]:
        with open_live_node(registry_of(folder, **engine), {"judge": folder}, warm_up) as live:
            yield Judge(live, folder)

    return open_node
