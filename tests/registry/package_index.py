"""A small package index for tests, and archives to put into it."""

import hashlib
import io
import json
import tarfile
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler


def make_wheel(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def make_sdist(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Index:
    """Serves `files` (name -> content) of one project; `hashes` override the true ones."""

    project: str = "weights"
    files: dict[str, bytes] = field(default_factory=dict)
    hashes: dict[str, str | None] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    """Sizes that the page says instead of the true ones."""
    body: bytes | None = None
    """What the page is instead of what it should be."""
    speaks_json: bool = True
    ranges: bool = True
    break_after: list[int] = field(default_factory=list)
    """Bytes after which the next downloads break off, one entry a download."""
    seen: list[str] = field(default_factory=list)
    """`path` or `path range` of every request."""
    url: str = ""

    def hash_of(self, name: str) -> str | None:
        return self.hashes[name] if name in self.hashes else sha256(self.files[name])

    def page(self) -> tuple[str, bytes]:
        if self.body is not None:
            return "application/vnd.pypi.simple.v1+json", self.body
        if self.speaks_json:
            files = [
                {
                    "filename": n,
                    "url": f"../../files/{n}",
                    "hashes": self._hashes(n),
                    "size": self.sizes.get(n, len(c)),
                }
                for n, c in self.files.items()
            ]
            body = {"meta": {"api-version": "1.0"}, "name": self.project, "files": files}
            return "application/vnd.pypi.simple.v1+json", json.dumps(body).encode()
        links = "".join(
            f'<a href="../../files/{n}{f"#sha256={self.hash_of(n)}" if self.hash_of(n) else ""}">{n}</a>'
            for n in self.files
        )
        return "text/html", f"<!DOCTYPE html><html><body>{links}</body></html>".encode()

    def _hashes(self, name: str) -> dict[str, str]:
        found = self.hash_of(name)
        return {"sha256": found} if found else {}

    def downloads(self) -> list[str]:
        return [path for path in self.seen if path.startswith("/files/")]


def handler(index: Index) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            index.seen.append(f"{self.path} {asked}" if asked else self.path)
            if self.path == f"/simple/{index.project}/":
                self._send(200, *index.page())
            elif (name := self.path.removeprefix("/files/")) in index.files:
                self._send_file(index.files[name], asked)
            else:
                self._send(404, "text/plain", b"nothing here")

        def _send_file(self, content: bytes, asked: str | None) -> None:
            if asked and index.ranges:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                if start >= len(content):
                    self._send(416, "text/plain", b"")
                    return
                self._send(206, "application/octet-stream", content[start:])
            else:
                self._send(200, "application/octet-stream", content)

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if kind == "application/octet-stream" and index.break_after:
                body = body[: index.break_after.pop(0)]
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    return Handler
