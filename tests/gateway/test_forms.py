"""Bodies that are forms, by a route of this test's own: fields, a file, limits, clients that behave badly."""

import asyncio
import hashlib
import json
import os
import threading
from typing import Annotated, Any

import pytest
from aiohttp import FormData, web
from openai import AsyncOpenAI
from pydantic import Field

from onecard.gateway.http import form
from onecard.gateway.http.body import json_response
from onecard.gateway.http.form import MAX_PARTS, MAX_TEXT_BYTES, PIECE_BYTES, SPOOL_BYTES, Upload, parse_form
from onecard.gateway.routes.route import Route, Routes
from onecard.gateway.routes.table import ROWS
from onecard.gateway.schemas.base import JsonInForms, ModelRequest

PATH = "/v1/audio/transcriptions"
WITHIN = 5.0


class Options(ModelRequest):
    depth: int


class Listening(ModelRequest):
    language: str | None = None
    temperature: float = Field(0.0, ge=0)
    stream: bool = False
    timestamp_granularities: list[str] = Field(default_factory=list)
    chunking_strategy: Annotated[str | dict[str, Any], JsonInForms] = "auto"
    options: Annotated[Options | None, JsonInForms] = None
    several: list[Annotated[Options, JsonInForms]] = Field(default_factory=list)


class Recorder(Upload):
    """Remembers all uploads, and which threads wrote."""

    made: list["Recorder"]

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()
        self.made.append(self)

    def _locked(self, call: Any, *args: Any) -> None:
        self.threads.add(threading.get_ident())
        super()._locked(call, *args)


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    Recorder.made = []
    monkeypatch.setattr(form, "Upload", Recorder)
    return Recorder.made


@pytest.fixture
def held() -> asyncio.Event:
    """Set it, and the handler answers."""
    event = asyncio.Event()
    event.set()
    return event


@pytest.fixture
def routes(held: asyncio.Event) -> Routes:
    async def listen(request: web.Request) -> web.Response:
        async with parse_form(request, Listening) as (asked, file):
            await held.wait()
            digest = hashlib.sha256(file.content.read()).hexdigest()
            facts = {
                "filename": file.filename,
                "type": file.content_type,
                "size": file.size,
                "sha256": digest,
            }
            return json_response({"text": "heard", "asked": asked.model_dump(), **facts})

    row = Route("POST", PATH, listen, "Listen", request=Listening, file="file")
    return Routes((*ROWS, row))


@pytest.fixture
async def client(serve, routes, uploads):
    return await serve(routes=routes)


def filled(*fields: tuple[str, str], data: bytes = b"RIFF", filename: str | None = "a.wav") -> FormData:
    made = FormData()
    for name, value in fields:
        made.add_field(name, value)
    made.add_field("file", data, filename=filename, content_type="audio/wav")
    return made


async def send(client, data, **options):
    return await client.request("POST", PATH, data=data, **options)


def raw_form(*parts: bytes, end: bytes = b"--b--\r\n") -> bytes:
    return b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + end


def field(name: str, text: str = "x", more: str = "") -> bytes:
    return f'Content-Disposition: form-data; name="{name}"{more}\r\n\r\n{text}'.encode()


FILE = field("file", "RIFF", '; filename="a.wav"')
TYPE = {"Content-Type": "multipart/form-data; boundary=b"}


async def until(condition):
    async with asyncio.timeout(WITHIN):
        while not condition():
            await asyncio.sleep(0.005)


# --- what arrives ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size",
    [
        0,
        1,
        PIECE_BYTES - 1,
        PIECE_BYTES,
        PIECE_BYTES + 1,
        SPOOL_BYTES - 1,
        SPOOL_BYTES,
        SPOOL_BYTES + 1,
        5 << 20,
    ],
)
async def test_files_of_all_sizes(client, uploads, size):
    data = os.urandom(size)
    reply = await send(client, filled(data=data))
    assert (reply.status, reply.body["size"]) == (200, size)
    assert reply.body["sha256"] == hashlib.sha256(data).hexdigest()
    assert (reply.body["filename"], reply.body["type"]) == ("a.wav", "audio/wav")
    [upload] = uploads
    assert upload.content.closed
    assert upload.content._rolled is (size > SPOOL_BYTES), (
        "what fits stays in memory, the rest is on the disk"
    )
    assert bool(upload.threads) is (size > SPOOL_BYTES)
    assert threading.get_ident() not in upload.threads, "the disk is not the event loop's to wait for"


@pytest.mark.parametrize("step", [1, 7, 1000])
async def test_bytes_that_look_like_boundaries_and_arrive_in_any_pieces(client, step):
    data = b"\r\n--b\r\n--\r\n\r\n-" * 3 + b"\r\n--c\r\n" + b"\r\n" * 50 + b"--b-"
    data = data.replace(b"\r\n--b", b"\r\n--a")
    body = raw_form(field("language", "en"), FILE.replace(b"RIFF", data))

    async def pieces():
        for start in range(0, len(body), step):
            yield body[start : start + step]
            await asyncio.sleep(0)

    reply = await send(client, pieces(), headers=TYPE)
    assert (reply.status, reply.body["sha256"]) == (200, hashlib.sha256(data).hexdigest())
    assert reply.body["asked"]["language"] == "en"


async def test_fields_become_what_the_schema_says(client):
    fields = [
        ("temperature", "0.5"),
        ("stream", "true"),
        ("timestamp_granularities[]", "word"),
        ("timestamp_granularities[]", "segment"),
        ("chunking_strategy", '{"type": "server_vad"}'),
        ("options", ' {"depth": 3}'),
        ("several[]", '{"depth": 1}'),
        ("several[]", '{"depth": 2}'),
        ("language", "{not json}"),
        ("something_new", "{neither"),
    ]
    asked = (await send(client, filled(*fields), headers={"X-Priority": "-2"})).body["asked"]
    assert (asked["temperature"], asked["stream"], asked["priority"]) == (0.5, True, -2)
    assert asked["timestamp_granularities"] == ["word", "segment"]
    assert asked["chunking_strategy"] == {"type": "server_vad"}
    assert asked["options"]["depth"] == 3
    assert [each["depth"] for each in asked["several"]] == [1, 2]
    assert asked["language"] == "{not json}", "a text stays one, whatever it begins with"
    assert (await send(client, filled(("chunking_strategy", "auto")))).body["asked"][
        "chunking_strategy"
    ] == "auto"


async def test_a_file_needs_no_name_of_its_own(client):
    reply = await send(client, raw_form(field("file", "RIFF")), headers=TYPE)
    assert (reply.status, reply.body["filename"], reply.body["size"]) == (200, None, 4)


async def test_openais_client(client):
    openai = AsyncOpenAI(base_url=client.url + "/v1", api_key="none")
    answer = await openai.audio.transcriptions.create(
        model="talker",
        file=("spéech.wav", b"RIFF", "audio/wav"),
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
        chunking_strategy={"type": "server_vad"},
    )
    asked = answer.asked
    assert (asked["model"], asked["timestamp_granularities"]) == ("talker", ["word", "segment"])
    assert answer.filename == "spéech.wav"


async def test_the_description_says_form(client):
    paths = (await client.get("/openapi.json")).body["paths"]
    body = paths[PATH]["post"]["requestBody"]
    assert body["required"]
    assert list(body["content"]) == ["multipart/form-data"]
    fields, file = body["content"]["multipart/form-data"]["schema"]["allOf"]
    assert fields["$ref"].endswith("/Listening")
    assert file["properties"] == {"file": {"type": "string", "format": "binary"}}


# --- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ([("temperature", "hot")], "temperature"),
        ([("temperature", "-1")], "temperature"),
        ([("language", "en"), ("language", "de")], "language"),
        ([("language", ""), ("language", "")], "language"),
        ([("language", "en"), ("language[]", "de")], "language[]"),
        ([("language[]", "en")], "language"),
        ([("options", "{")], "options"),
        ([("options", "3")], "options"),
        ([("options", '{"depth": "deep"}')], "options.depth"),
        ([("options", "[]")], "options"),
    ],
)
async def test_wrong_fields(client, uploads, fields, param):
    reply = await send(client, filled(*fields))
    assert (reply.status, reply.error["type"], reply.error["param"]) == (400, "BadRequestError", param)
    assert uploads[0].content.closed


@pytest.mark.parametrize(
    ("parts", "param", "says"),
    [
        ((), "file", "is required"),
        ((field("language"),), "file", "is required"),
        ((FILE, FILE), "file", "once"),
        ((FILE, field("picture", "x", '; filename="a.png"')), "picture", "goes into `file`"),
        ((FILE, b"\r\nx"), None, "name"),
        ((FILE, b"Content-Disposition: form-data\r\n\r\nx"), None, "name"),
        ((FILE, b'Content-Disposition: form-data; name=""\r\n\r\nx'), None, "name"),
        ((FILE, b"Content-Type: multipart/mixed; boundary=c\r\n\r\n--c--"), None, "name"),
        ((b"Content-Transfer-Encoding: base64\r\n" + FILE,), None, "transfer encoding"),
        ((b"Content-Encoding: gzip\r\n" + FILE,), None, "content or transfer encoding"),
        ((FILE, field("language", "") + b"\xff"), None, "could not be read"),
        ((FILE, b"X: " + b"y" * 10000 + b"\r\n" + field("language")), None, "could not be read"),
        ((FILE, b"no header\r\n" + field("language")), None, "could not be read"),
    ],
)
async def test_wrong_parts(client, uploads, parts, param, says):
    reply = await send(client, raw_form(*parts), headers=TYPE)
    assert (reply.status, reply.error["param"]) == (400, param), reply.text
    assert says in reply.error["message"]
    assert all(upload.content.closed for upload in uploads)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (raw_form(FILE), "multipart/form-data"),
        (raw_form(FILE), "multipart/form-data; boundary=" + "b" * 100),
        (raw_form(FILE), "multipart/form-data; boundary=other"),
        (raw_form(FILE, end=b""), TYPE["Content-Type"]),
        (raw_form(FILE, end=b"--b"), TYPE["Content-Type"]),
        (raw_form(FILE, end=b"--bad\r\n"), TYPE["Content-Type"]),
        (b"--b\r\n" + FILE, TYPE["Content-Type"]),
        (b"--b\r\nContent-Disposition: form-da", TYPE["Content-Type"]),
        (b"--b", TYPE["Content-Type"]),
        (b"x" * 300_000, TYPE["Content-Type"]),
        (b"", TYPE["Content-Type"]),
    ],
)
async def test_what_is_no_form(client, uploads, body, kind):
    reply = await send(client, body, headers={"Content-Type": kind})
    assert (reply.status, reply.error["type"]) == (400, "BadRequestError"), reply.text
    assert all(upload.content.closed for upload in uploads)
    assert (await send(client, filled())).status == 200


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", "multipart/mixed"])
async def test_the_wrong_content_type(client, kind):
    reply = await send(client, raw_form(FILE), headers={"Content-Type": f"{kind}; boundary=b"})
    assert (reply.status, reply.error["type"]) == (415, "UnsupportedMediaTypeError")
    assert "multipart/form-data" in reply.error["message"]


async def test_json_routes_take_no_form(client):
    assert (await client.request("POST", "/v1/embeddings", data=filled())).status == 415


async def test_limits(serve, routes, uploads):
    client = await serve(routes=routes, max_body_bytes=3 << 20)

    async def unannounced():
        for piece in raw_form(FILE.replace(b"RIFF", b"x" * PIECE_BYTES * 64)).split(b"x" * PIECE_BYTES):
            yield piece + b"x" * PIECE_BYTES

    too_much = {
        "3145728 bytes": filled(data=b"x" * (3 << 20)),
        "3145728 bytes.": unannounced(),
        f"{MAX_TEXT_BYTES} bytes without the file": filled(
            ("language", "x" * MAX_TEXT_BYTES), ("prompt", "x")
        ),
        f"{MAX_PARTS} parts": filled(*(("x[]", "y") for _ in range(MAX_PARTS))),
    }
    for limit, body in too_much.items():
        reply = await send(client, body, headers={} if isinstance(body, FormData) else TYPE)
        assert (reply.status, reply.error["code"]) == (413, "request_too_large"), limit
        assert f"The limit is {limit.rstrip('.')}." in reply.error["message"]
    assert (await send(client, filled(*(("x[]", "y") for _ in range(MAX_PARTS - 1))))).status == 200
    assert all(upload.content.closed for upload in uploads)


# --- clients that behave badly -----------------------------------------------------------------------


async def begin(client, body: bytes, length: int):
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: {TYPE['Content-Type']}\r\nContent-Length: {length}"
    )
    writer.write(head.encode() + b"\r\n\r\n" + body)
    await writer.drain()
    return reader, writer


@pytest.mark.parametrize("sent", [len(FILE), 100_000, SPOOL_BYTES + 500_000])
async def test_hanging_up_in_the_middle_closes_the_spool(client, uploads, metrics, sent):
    body = raw_form(FILE.replace(b"RIFF", b"x" * sent))
    _, writer = await begin(client, body[:-10], len(body) + 100)
    await until(lambda: uploads and uploads[0].size >= sent - 2 * PIECE_BYTES)
    writer.close()
    await until(lambda: uploads[0].content.closed)
    await until(lambda: metrics.requests)


@pytest.mark.parametrize("size", [4, SPOOL_BYTES + 1])
async def test_hanging_up_while_it_is_worked_on_closes_the_spool(client, uploads, held, metrics, size):
    held.clear()
    body = raw_form(FILE.replace(b"RIFF", b"x" * size))
    _, writer = await begin(client, body, len(body))
    await until(lambda: uploads and uploads[0].size == size)
    await asyncio.sleep(0.02)
    assert not uploads[0].content.closed
    writer.close()
    await until(lambda: uploads[0].content.closed)
    await until(lambda: metrics.requests)
    assert metrics.requests[0][2] == 499


async def test_a_slow_client_is_told(serve, routes, uploads):
    client = await serve(routes=routes, body_timeout=0.2)
    body = raw_form(FILE)
    for sent in (0, 5, len(body) - 5):
        reader, writer = await begin(client, body[:sent], len(body))
        async with asyncio.timeout(WITHIN):
            head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408"), head
        writer.close()
    assert all(upload.content.closed for upload in uploads)


async def test_a_spool_is_closed_after_the_write_that_nobody_waits_for():
    upload = Upload()
    upload.size = SPOOL_BYTES
    began, go_on = threading.Event(), threading.Event()
    write = upload.content.write

    def slow(piece: bytes) -> None:
        began.set()
        assert go_on.wait(WITHIN)
        write(piece)

    upload.content.write = slow  # type: ignore[method-assign]
    writing = asyncio.create_task(upload.append(b"x"))
    await asyncio.to_thread(began.wait, WITHIN)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    closing = asyncio.create_task(upload.do(upload.content.close))
    await asyncio.sleep(0.01)
    assert not upload.content.closed
    closing.cancel()
    go_on.set()
    await until(lambda: upload.content.closed)


async def test_other_requests_are_answered_while_a_file_arrives(client, uploads):
    body = raw_form(FILE.replace(b"RIFF", b"x" * (4 << 20)))
    reader, writer = await begin(client, body[: 3 << 20], len(body))
    await until(lambda: uploads and uploads[0].size > SPOOL_BYTES)
    assert (await client.get("/health")).status == 200
    writer.write(body[3 << 20 :])
    async with asyncio.timeout(WITHIN):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        answer = json.loads(await reader.readexactly(length))
    assert answer["size"] == 4 << 20
    writer.close()


async def test_many_at_once(client, uploads):
    async def one(i: int) -> None:
        data = bytes([i]) * (SPOOL_BYTES + i)
        reply = await send(client, filled(("language", str(i)), data=data))
        assert reply.body["sha256"] == hashlib.sha256(data).hexdigest()
        assert reply.body["asked"]["language"] == str(i)

    await asyncio.gather(*map(one, range(8)))
    assert len(uploads) == 8
    assert all(upload.content.closed for upload in uploads)
