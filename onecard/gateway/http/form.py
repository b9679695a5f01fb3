"""Bodies that are forms (multipart/form-data, RFC 7578): fields for a schema, and one file.

A form is read part by part, so of a large file only the spool's share is ever in memory.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from tempfile import SpooledTemporaryFile
from threading import Lock
from typing import Any

from aiohttp import BodyPartReader, web

from onecard.engines.api import InvalidRequestError
from onecard.gateway.context import GATEWAY
from onecard.gateway.http.body import Parsed, arrived, off_loop, validated
from onecard.gateway.http.errors import GatewayError, shorten, too_large

SPOOL_BYTES = 1 << 20
"""What of a file is held in memory; a larger one goes to the disk."""
PIECE_BYTES = 64 << 10
MAX_TEXT_BYTES = 1 << 20
"""For all fields of a form together."""
MAX_PARTS = 256
PLAIN_ENCODINGS = frozenset({"binary", "8bit", "7bit"})


class Upload:
    """A file as the client sent it. `content` stands at its beginning; its type is what the client says."""

    def __init__(self) -> None:
        self.filename: str | None = None
        self.content_type: str | None = None
        self.size = 0
        self.content = SpooledTemporaryFile[bytes](SPOOL_BYTES)
        self._lock = Lock()  # a thread may still write when the client has hung up already

    async def append(self, piece: bytes) -> None:
        self.size += len(piece)
        await self.do(self.content.write, piece)

    async def do(self, call: Callable[..., Any], *args: Any) -> None:
        """On a thread where it may touch the disk; then it is done whether or not it is waited for."""
        if self.size <= SPOOL_BYTES:
            call(*args)
        else:
            loop = asyncio.get_running_loop()
            await asyncio.shield(loop.run_in_executor(None, self._locked, call, *args))

    def _locked(self, call: Callable[..., Any], *args: Any) -> None:
        with self._lock:
            call(*args)


@asynccontextmanager
async def parse_form(
    request: web.Request, schema: type[Parsed], file: str = "file"
) -> AsyncIterator[tuple[Parsed, Upload]]:
    """The form's fields as a `schema`, and the file in the field `file`, which is gone after the block.

    Fields named `x[]` become the list `x`; objects are JSON (`schemas.base.JsonInForms`). Raises
    `EngineError` with status 400, 408, 413 or 415.
    """
    if request.content_type != "multipart/form-data":
        kind = shorten(request.content_type)
        raise GatewayError(415, f"Send the body as multipart/form-data, not as {kind}.")
    form = _Form(request, file)
    try:
        await arrived(request, form.read)
        asked = await off_loop(form.text_bytes, lambda: validated(request, form.fields, schema))
        yield asked, form.upload
    finally:
        await form.upload.do(form.upload.content.close)


class _Form:
    """Reads one form: its fields and its file."""

    def __init__(self, request: web.Request, file: str) -> None:
        self._request, self._file = request, file
        self.fields: dict[str, Any] = {}
        self.upload = Upload()
        self._has_file = False
        self.text_bytes = 0

    async def read(self) -> None:
        try:
            parts = await self._request.multipart()
            for _ in range(MAX_PARTS + 1):
                if (part := await parts.next()) is None:
                    break
                await self._part(part)
            else:
                raise too_large(MAX_PARTS, "parts")
        except (ValueError, RuntimeError, AssertionError) as error:  # aiohttp's, for what is no form
            raise InvalidRequestError(f"The form could not be read: {shorten(str(error))}.") from None
        if not self._has_file:
            raise InvalidRequestError(f"`{self._file}` is required", param=self._file)
        await self.upload.do(self.upload.content.seek, 0)

    async def _part(self, part: object) -> None:
        if not isinstance(part, BodyPartReader) or not part.name:
            raise InvalidRequestError("Each part of the form needs a name.")
        transfer = part.headers.get("Content-Transfer-Encoding", "binary").lower()
        if transfer not in PLAIN_ENCODINGS or part.headers.get("Content-Encoding", "identity") != "identity":
            raise InvalidRequestError(
                "Parts of the form must be sent as they are, in no content or transfer encoding."
            )
        if part.name == self._file:
            await self._take_file(part)
        elif part.filename is not None:
            raise InvalidRequestError(f"The file goes into `{self._file}`.", param=shorten(part.name))
        else:
            self._add(part.name, await self._text(part))

    async def _take_file(self, part: BodyPartReader) -> None:
        if self._has_file:
            raise InvalidRequestError(f"`{self._file}` may be given once only.", param=self._file)
        self._has_file = True
        self.upload.filename, self.upload.content_type = part.filename, part.headers.get("Content-Type")
        async for piece in self._pieces(part):
            await self.upload.append(piece)

    async def _text(self, part: BodyPartReader) -> str:
        text = bytearray()
        async for piece in self._pieces(part):
            text += piece
            self.text_bytes += len(piece)
            if self.text_bytes > MAX_TEXT_BYTES:
                raise too_large(MAX_TEXT_BYTES, "bytes without the file")
        return text.decode()

    async def _pieces(self, part: BodyPartReader) -> AsyncIterator[bytes]:
        limit = self._request.app[GATEWAY].server.max_body_bytes
        while not part.at_eof():
            piece = await part.read_chunk(PIECE_BYTES)
            if self._request.content.total_bytes > limit:
                raise too_large(limit)
            yield piece

    def _add(self, name: str, text: str) -> None:
        key, is_item = name.removesuffix("[]"), name.endswith("[]")
        values = self.fields.get(key)
        if is_item and isinstance(values, list):
            values.append(text)
        elif values is None:
            self.fields[key] = [text] if is_item else text
        else:
            raise InvalidRequestError(f"`{shorten(name)}` may be given once only.", param=shorten(name))
