"""A registry file -> frozen specs."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from onecard.registry.decode import Decoder
from onecard.registry.document import Document
from onecard.registry.problems import Position, Problems
from onecard.registry.sources import localise
from onecard.registry.spec import ModelSpec, Registry, RegistryError
from onecard.registry.validate import validate


def load_registry(path: str | Path, env: Mapping[str, str] | None = None) -> Registry:
    """The registry in the YAML file `path`, checked; RegistryError with every problem found.

    `env` stands in for the process's environment.
    """
    file = Path(path)
    problems = Problems(str(path))
    document = Document(_read(file), os.environ if env is None else env, problems)
    if document.root is None and not problems.found:
        problems.add(Position(1, 1), "", "the file is empty; a registry has the keys server, cards, models")
    problems.raise_if_any()
    assert document.root is not None
    decoder = Decoder(document, problems)
    registry = decoder.spec(Registry, document.root)
    if problems.has(""):
        problems.raise_if_any()
    models = tuple(_beside(model, file.absolute().parent) for model in registry.models)
    registry = replace(registry, models=models, path=str(path))
    validate(registry, decoder.positions, problems)
    problems.raise_if_any()
    return registry


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RegistryError(f"{file}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise RegistryError(f"{file}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise RegistryError(f"{file}: can't be read: {error.strerror}") from None


def _beside(model: ModelSpec, folder: Path) -> ModelSpec:
    """`model` with its relative paths made absolute: they are meant from the registry's folder."""
    engine = model.engine
    if engine.chat_template is not None:
        engine = replace(engine, chat_template=_path(engine.chat_template, folder))
    if engine.tokenizer is not None and _is_path(engine.tokenizer, folder):
        engine = replace(engine, tokenizer=_path(engine.tokenizer, folder))
    return replace(model, source=localise(model.source, folder), engine=engine)


def _path(text: str, folder: Path) -> str:
    return str(folder / Path(text).expanduser())


def _is_path(tokenizer: str, folder: Path) -> bool:
    """A tokenizer is a folder where it looks like one or is there, else a hub id."""
    return tokenizer.startswith((".", "/", "~")) or (folder / tokenizer).exists()
