"""A registry file -> frozen specs.

`load_registry` is what the rest of onecard calls; `load` also tells where each key stands in the file.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from onecard.registry.address import host_of
from onecard.registry.decode import Decoder
from onecard.registry.document import Document
from onecard.registry.plain_files import FileRefusedError, expanded, is_there, read_text
from onecard.registry.problems import Position, Problems
from onecard.registry.sources import localise
from onecard.registry.spec import ModelSpec, Registry, RegistryError
from onecard.registry.validate import validate

LARGEST_BYTES = 256 << 10
"""Of a registry: room for a thousand models, and what YAML's parser reads in seconds."""


@dataclass(frozen=True)
class Loaded:
    """A registry, and where each key path (`models[0].memory`) stands in its file."""

    registry: Registry
    positions: Mapping[str, Position]


def load_registry(path: str | Path) -> Registry:
    """The registry in the YAML file `path`, checked; RegistryError with every problem found."""
    return load(path).registry


def load(path: str | Path, env: Mapping[str, str] | None = None) -> Loaded:
    """As `load_registry`, with positions; `env` stands in for the process's environment."""
    file = Path(path)
    problems = Problems(str(path))
    document = Document(_read(file), os.environ if env is None else env, problems)
    if document.root is None:
        if not problems.found:
            empty = "the file is empty; a registry has the keys server, cards, models"
            problems.add(Position(1, 1), "", empty)
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
    server = replace(registry.server, host=host_of(registry.server.host))
    return Loaded(replace(registry, server=server), decoder.positions)


def _read(file: Path) -> str:
    try:
        return read_text(file, LARGEST_BYTES)
    except FileRefusedError as error:
        raise RegistryError(str(error)) from None


def _beside(model: ModelSpec, folder: Path) -> ModelSpec:
    """`model` with its relative paths made absolute: they are meant from the registry's folder."""
    template, tokenizer = model.engine.chat_template, model.engine.tokenizer
    if template is not None:
        template = str(folder / expanded(template))
    # A tokenizer is a folder where it looks like one or is there, else a hub id.
    if tokenizer and (tokenizer.startswith((".", "/", "~")) or is_there(folder / tokenizer)):
        tokenizer = str(folder / expanded(tokenizer))
    engine = replace(model.engine, chat_template=template, tokenizer=tokenizer)
    return replace(model, source=localise(model.source, folder), engine=engine)
