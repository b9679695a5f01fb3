"""Local sources, and Hub sources against a hub that this test serves."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest
from package_index import sha256

from onecard.registry.sources import fetch, is_fetched, parse_source
from onecard.registry.sources.base import LocalSource, NoProgress
from onecard.registry.sources.hubs import HuggingFaceSource, ModelScopeSource
from onecard.registry.spec import ModelSpec, SourceError

COMMIT = "c" * 40


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("/a/b.gguf", LocalSource(Path("/a/b.gguf"))),
        ("./a", LocalSource(Path("./a"))),
        ("C:\\models\\a", LocalSource(Path("C:\\models\\a"))),
        ("hf:o/n", HuggingFaceSource("o/n")),
        ("hf:o/n@v1", HuggingFaceSource("o/n", None, "v1")),
        ("hf:o/n@refs/pr/1", HuggingFaceSource("o/n", None, "refs/pr/1")),
        ("hf:o/n-GGUF/q4/m.gguf@abc", HuggingFaceSource("o/n-GGUF", "q4/m.gguf", "abc")),
        ("modelscope:o/n@v1", ModelScopeSource("o/n", "v1")),
    ],
)
def test_the_forms_of_a_source(text: str, source: object) -> None:
    assert parse_source(text) == source


def test_a_local_file_and_its_pin(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    spec = ModelSpec(name="m", source=str(path), sha256=sha256(b"weights").upper())
    assert is_fetched(spec) is None
    with pytest.raises(SourceError, match="there is no file or folder"):
        fetch(spec, NoProgress())
    path.write_bytes(b"weights")
    assert fetch(spec, NoProgress()) == is_fetched(spec) == path
    path.write_bytes(b"other")
    with pytest.raises(SourceError, match=sha256(b"other")):
        fetch(spec, NoProgress())


def test_a_missing_gguf_file_is_told_with_what_is_near(tmp_path: Path) -> None:
    def refusal(path: Path) -> str:
        with pytest.raises(SourceError) as refused:
            fetch(ModelSpec(name="m", source=str(path)), NoProgress())
        return str(refused.value)

    hub = "; for a file of the Hugging Face Hub write hf:org/name/m-Q4.gguf"
    missing = tmp_path / "m-Q4.gguf"
    assert refusal(missing) == f"there is no file or folder `{missing}`{hub}"
    (tmp_path / "m-Q4_K.gguf").touch()
    (tmp_path / "other.gguf").touch()
    assert refusal(missing).endswith(f"{hub}. Did you mean `m-Q4_K.gguf`?")
    lost = tmp_path / "gguf" / "m-Q4.gguf"
    assert f"`{lost}`, nor its folder; a relative path starts at the registry's folder{hub}" in refusal(lost)
    assert refusal(tmp_path / "org" / "name").endswith(
        "; for a model of the Hugging Face Hub write hf:org/name"
    )


def test_a_local_folder(tmp_path: Path) -> None:
    assert fetch(ModelSpec(name="m", source=str(tmp_path)), NoProgress()) == tmp_path
    with pytest.raises(SourceError, match="`sha256` pins one file"):
        fetch(ModelSpec(name="m", source=str(tmp_path), sha256="a" * 64), NoProgress())


def test_modelscope_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    assert is_fetched(ModelSpec(name="m", source="modelscope:o/n")) is None
    with pytest.raises(SourceError, match=r"pip install 'onecard\[modelscope\]'"):
        fetch(ModelSpec(name="m", source="modelscope:o/n"), NoProgress())


@dataclass
class Hub:
    """Serves the parts of the Hub's API that a download needs; `repos`: id -> file -> content."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    fails_with: int | None = None
    served: list[str] = field(default_factory=list)
    url: str = ""


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path, _, _ = self.path.partition("?")
            if hub.fails_with is not None:
                self._answer(hub.fails_with, b"{}", {})
                return
            parts = path.strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                self._api("/".join(parts[2:4]), parts[4] if len(parts) > 4 else "")
            elif len(parts) > 4 and parts[2] == "resolve":
                self._file("/".join(parts[:2]), "/".join(parts[4:]))
            else:
                self._answer(404, b"{}", {})

        def _api(self, repo: str, what: str) -> None:
            if repo not in hub.repos:
                self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
                return
            files = hub.repos[repo].items()
            body: object = {
                "id": repo,
                "sha": COMMIT,
                "siblings": [{"rfilename": n, "size": len(c)} for n, c in files],
            }
            if what == "tree":
                body = [{"type": "file", "path": n, "size": len(c), "oid": sha256(c)[:40]} for n, c in files]
            self._answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

        def _file(self, repo: str, name: str) -> None:
            content = hub.repos.get(repo, {}).get(name)
            if content is None:
                self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
                return
            if self.command == "GET":
                hub.served.append(name)
            self._answer(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{sha256(content)[:40]}"'})

        def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


SCRIPT = """
import json, sys
from onecard.registry.sources import fetch, is_fetched
from onecard.registry.spec import ModelSpec, SourceError

class Bytes:
    total, seen = None, 0
    def start(self, name, total_bytes): Bytes.total = total_bytes
    def advance(self, n): Bytes.seen += n
    def done(self): pass

for source in sys.argv[1:]:
    spec = ModelSpec(name="m", source=source)
    try:
        before = is_fetched(spec)
        path = fetch(spec, Bytes())
        print(json.dumps([before and str(before), str(path), str(is_fetched(spec)), Bytes.total, Bytes.seen]))
    except SourceError as error:
        print(json.dumps(str(error)))
"""


def on_hub(hub_url: str, home: Path, *sources: str, **env: str) -> list[list[object] | str]:
    """Fetches in a process of its own: huggingface_hub reads its settings when it is imported."""
    return on_hub_with_words(hub_url, home, *sources, **env)[0]


def on_hub_with_words(
    hub_url: str, home: Path, *sources: str, **env: str
) -> tuple[list[list[object] | str], str]:
    """The same, and what was said on stderr."""
    settings = {"HF_ENDPOINT": hub_url, "HF_HOME": str(home), "no_proxy": "127.0.0.1", "HF_HUB_OFFLINE": "0"}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, *sources],
        capture_output=True,
        text=True,
        env={**os.environ, **settings, **env},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()], run.stderr


def test_hub_models(hub: Hub, tmp_path: Path) -> None:
    wanted = {
        "config.json": b"{}",
        "model.safetensors": b"w" * 5000,
        "tokenizer.json": b"{ }",
        "vocab.txt": b"a",
    }
    pickles = {"pytorch_model.bin": b"pickle", "onnx/model.onnx": b"onnx", "onnx/config.json": b"{}"}
    hub.repos = {
        "o/n": {**wanted, **pickles, "README.md": b"#", "1_Pooling/config.json": b"[]"},
        "o/gguf": {"a.gguf": b"g" * 100, "b.gguf": b"h"},
        "o/pickle": {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
    }
    sources = ("hf:o/n", "hf:o/gguf/a.gguf", "hf:o/gguf", "hf:o/pickle", "hf:o/none", "hf:o/gguf/c.gguf")
    whole, one, gguf, pickle, none, missing = on_hub(hub.url, tmp_path, *sources)

    total = sum(map(len, wanted.values())) + 2
    assert whole[0] is None
    assert whole[1] == whole[2]
    assert whole[3:] == [total, total]
    folder = Path(str(whole[1]))
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == {
        *wanted,
        "1_Pooling/config.json",
    }
    assert Path(str(one[1])).read_bytes() == b"g" * 100
    assert gguf == "hf:o/gguf holds GGUF files; name one of them: hf:o/gguf/a.gguf, hf:o/gguf/b.gguf"
    assert "(its pytorch_model.bin is a pickle, which could run code)" in pickle
    assert "does not exist, or is private: check the name, or set HF_TOKEN" in none
    assert "has no file `c.gguf`" in missing
    assert not {"pytorch_model.bin", "onnx/model.onnx"} & set(hub.served)

    hub.served.clear()
    nowhere = "http://127.0.0.1:9"
    again, offline = on_hub(nowhere, tmp_path, "hf:o/n", "hf:o/other", HF_HUB_OFFLINE="1")
    assert again[0] == again[1] == str(folder)
    assert "is not in the Hub's cache and can't be fetched" in offline
    assert ".." not in offline
    (unreachable,) = on_hub(nowhere, tmp_path, "hf:o/other")
    assert "Check the network (HF_ENDPOINT, HF_HUB_OFFLINE)" in unreachable


def test_an_unfinished_snapshot_is_not_taken_for_a_model(hub: Hub, tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    hub.repos["o/n"] = {
        "config.json": b"{}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-1.safetensors": b"1",
        "model-2.safetensors": b"2",
    }
    ((_, path, *_),) = on_hub(hub.url, tmp_path, "hf:o/n")
    (Path(str(path)) / "model-2.safetensors").unlink()
    ((before, path, *_),) = on_hub(hub.url, tmp_path, "hf:o/n")
    assert before is None
    assert (Path(str(path)) / "model-2.safetensors").read_bytes() == b"2"


# What another tool has left in the Hub's cache.

SENTENCES = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "tokenizer.json": b"{ }",
    "modules.json": b"[]",
    "1_Pooling/config.json": b"{}",
    "chat_template.jinja": b"{{ 1 }}",
}


def filled_by_another_tool(home: Path, *names: str) -> Path:
    """A snapshot of o/n in the Hub's cache with nothing but these files."""
    repo = home / "hub" / "models--o--n"
    snapshot = repo / "snapshots" / COMMIT
    for name in names:
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_bytes(SENTENCES[name])
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    return snapshot


def test_what_another_tool_has_left_out_of_the_cache_is_fetched(hub: Hub, tmp_path: Path) -> None:
    hub.repos["o/n"] = SENTENCES
    snapshot = filled_by_another_tool(tmp_path, "config.json", "model.safetensors")
    ((before, path, after, *_),) = on_hub(hub.url, tmp_path, "hf:o/n")
    assert before is None, "present is not complete"
    assert path == after == str(snapshot)
    assert (snapshot / "1_Pooling/config.json").read_bytes() == b"{}"
    assert sorted(hub.served) == [
        "1_Pooling/config.json", "chat_template.jinja", "modules.json", "tokenizer.json",
    ]  # fmt: skip
    nowhere = "http://127.0.0.1:9"
    ((before, *_),) = on_hub(nowhere, tmp_path, "hf:o/n", HF_HUB_OFFLINE="1")
    assert before == str(snapshot), "and from then on the network isn't needed"


def test_a_cache_of_another_tool_is_taken_offline_with_a_warning(hub: Hub, tmp_path: Path) -> None:
    snapshot = filled_by_another_tool(tmp_path, "config.json", "model.safetensors", "tokenizer.json")
    (found,), said = on_hub_with_words("http://127.0.0.1:9", tmp_path, "hf:o/n", HF_HUB_OFFLINE="1")
    assert found[1] == str(snapshot)
    assert "modules.json, 1_Pooling/config.json, sentence_bert_config.json, tokenizer_config.json" in said
    assert "Run `onecard pull` once where the hub can be reached" in said


def test_a_file_gone_from_the_cache_is_named_offline(hub: Hub, tmp_path: Path) -> None:
    hub.repos["o/n"] = SENTENCES
    ((_, path, *_),) = on_hub(hub.url, tmp_path, "hf:o/n")
    (Path(str(path)) / "1_Pooling/config.json").unlink()
    (said,) = on_hub("http://127.0.0.1:9", tmp_path, "hf:o/n", HF_HUB_OFFLINE="1")
    assert "in the Hub's cache it lacks 1_Pooling/config.json" in said
    assert "is not in the Hub's cache" not in said


def test_the_hub_s_own_listing_is_believed(tmp_path: Path) -> None:
    snapshot = filled_by_another_tool(tmp_path, "config.json", "model.safetensors")
    (tmp_path / "hub/models--o--n/trees").mkdir()
    tree = {
        "format_version": 1,
        "files": {name: {"size": 1} for name in [*SENTENCES, "README.md"]},
    }
    (tmp_path / f"hub/models--o--n/trees/{COMMIT}.json").write_text(json.dumps(tree))
    (said,) = on_hub("http://127.0.0.1:9", tmp_path, "hf:o/n", HF_HUB_OFFLINE="1")
    assert "it lacks tokenizer.json, modules.json, 1_Pooling/config.json, chat_template.jinja" in said
    for name in SENTENCES:
        (snapshot / name).parent.mkdir(exist_ok=True)
        (snapshot / name).write_bytes(SENTENCES[name])
    ((before, *_),) = on_hub("http://127.0.0.1:9", tmp_path, "hf:o/n", HF_HUB_OFFLINE="1")
    assert before == str(snapshot)


@pytest.mark.parametrize("status", [500, 503, 429, 418])
def test_a_hub_that_fails_is_not_a_cache_that_lacks(hub: Hub, tmp_path: Path, status: int) -> None:
    hub.fails_with = status
    (said,) = on_hub(hub.url, tmp_path, "hf:o/n")
    assert f"hf:o/n can't be fetched: the Hub answers {status}" in said
    assert "cache" not in said


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("hf:a/b.git", "write it without `.git`"),
        ("hf:a--b/c", "`a--b` is no name of a hub"),
        ("hf:../..", "`..` is no name of a hub"),
        ("hf:-a/b", "`-a` is no name"),
        ("hf:a/" + "b" * 97, "1 to 96 letters"),
        ("hf:é/b", "is no name of a hub"),
        ("hf:a/b@../../x", "without `.`, `..`"),
        ("hf:a/b/../../c.gguf", "without `.`, `..`"),
        ("modelscope:a/b.git", "write it without `.git`"),
        ("pypi:a==1.0/.", "is no path inside an archive"),
    ],
)
def test_names_that_no_hub_has_are_refused_when_the_registry_is_read(source: str, said: str) -> None:
    with pytest.raises(SourceError) as caught:
        parse_source(source).check(None)
    assert said in str(caught.value)
    assert source.removeprefix("pypi:a==1.0/") in str(caught.value)


def test_a_folder_that_is_not_there_is_no_name_of_a_hub(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        parse_source(str(tmp_path / "Qwen" / "Qwen3")).check(None)
    assert "write hf:org/name" in str(caught.value)
    assert "hf:Qwen" not in str(caught.value)


def test_sources_that_are_no_file_are_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "m.gguf"
    os.mkfifo(pipe)
    link = tmp_path / "link.gguf"
    link.symlink_to(tmp_path / "nothing")
    for source, said in [
        (pipe, "is a pipe"),
        ("/dev/zero", "is a device"),
        (link, "a link to a file that isn't"),
    ]:
        for pin in (None, "a" * 64):
            spec = ModelSpec(name="m", source=str(source), sha256=pin)
            with pytest.raises(SourceError, match=said):
                fetch(spec, NoProgress())
    for source in ("a" * 5000, "~nobody-at-all/m", "a\0b"):
        with pytest.raises(SourceError, match="there is no file or folder"):
            fetch(ModelSpec(name="m", source=source), NoProgress())


def test_a_modelscope_cache_is_whole_once_it_was_fetched_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`modelscope` stands for the package, which has the same function."""
    reachable = False

    def snapshot_download(repo: str, *, local_files_only: bool = False, **options: object) -> str:
        if not local_files_only:
            if not reachable:
                raise OSError("no route to host")
            (tmp_path / "modules.json").write_text("[]")
        return str(tmp_path)

    package = ModuleType("modelscope")
    monkeypatch.setattr(package, "snapshot_download", snapshot_download, raising=False)
    monkeypatch.setitem(sys.modules, "modelscope", package)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    spec = ModelSpec(name="m", source="modelscope:o/n")
    assert is_fetched(spec) is None
    assert fetch(spec, NoProgress()) == tmp_path
    assert "If it has one of these, which aren't here" in caplog.text
    assert "modules.json" in caplog.text
    reachable = True
    assert fetch(spec, NoProgress()) == is_fetched(spec) == tmp_path
    (tmp_path / "modules.json").unlink()
    assert is_fetched(spec) is None
