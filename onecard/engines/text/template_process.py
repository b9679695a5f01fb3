"""Processes that render chat templates, each within limits (`template_environment.serve`).

A template is a program from a stranger. Jinja's sandbox keeps it from Python's internals, but not from
filling memory or looping for ever, and a thread that does can't be ended. So it runs in a process: started
for a model's first chat, kept for the next ones (a question and its answer cost some 0.2 ms), ended when it
breaks a limit.
"""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass

KEPT_ENVIRONMENT = ("TZ", "LANG", "LC_ALL", "LD_LIBRARY_PATH")
MAX_PROCESSES = 2
"""Of a model: chats are quick, and one that isn't doesn't hold up the others."""


@dataclass(frozen=True)
class TemplateLimits:
    """What rendering may use. Bytes, and seconds of a processor; by the wall's clock `PATIENCE` times those.

    `input_bytes` are messages, tools and all else that a request gives to a template, as JSON.
    """

    source_bytes: int = 64 << 10
    """Of one that a request brings; a model's own may have `OWN_SOURCE_BYTES`."""
    input_bytes: int = 16 << 20
    output_bytes: int = 8 << 20
    memory_bytes: int = 512 << 20
    cpu_seconds: int = 2


PATIENCE = 5
OWN_SOURCE_BYTES = 1 << 20


class ProcessEndedError(Exception):
    """It has ended before it answered, or was too slow and had to be ended."""


class TemplateProcesses:
    """Answers questions in the order they come. Belongs to one event loop at a time."""

    def __init__(self, limits: TemplateLimits):
        self._seconds = limits.cpu_seconds * PATIENCE
        self._most_bytes = 4 * limits.output_bytes + 1
        self._places = asyncio.Semaphore(MAX_PROCESSES)
        self._idle: list[_Process] = []

    async def ask(self, question: bytes) -> bytes:
        """The answer to a question in `serve`'s format. Raises `ProcessEndedError` where there is none."""
        async with self._places:
            process, keep = self._usable(), False
            if process is None:
                process = await asyncio.to_thread(_Process)
            try:
                async with asyncio.timeout(self._seconds):
                    answer = await process.ask(question, self._most_bytes)
                keep = answer[:1] != b"F"
            except (TimeoutError, OSError, EOFError) as error:
                raise ProcessEndedError from error
            finally:  # also where the client has gone: nobody would read the answer
                if keep:
                    self._idle.append(process)
                else:
                    _in_the_background(process.end)
            return answer

    def _usable(self) -> "_Process | None":
        while self._idle:
            process = self._idle.pop()
            if process.is_alive():
                return process
            _in_the_background(process.end)
        return None


class _Process:
    """Ends with its socket, or when nobody refers to it any more."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _BOOTSTRAP, *sys.path],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ},
                start_new_session=True,  # a Ctrl-C is for the server
            )
        self.end = weakref.finalize(self, _end, self._process, self._socket)

    def is_alive(self) -> bool:
        return self._process.poll() is None

    async def ask(self, question: bytes, most_bytes: int) -> bytes:
        """Raises `EOFError` where the process ends, or answers with more than `most_bytes`."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._socket, len(question).to_bytes(8, "big"))
        await loop.sock_sendall(self._socket, question)
        if (size := int.from_bytes(await self._read(8), "big")) > most_bytes:
            raise EOFError
        return bytes(await self._read(size))

    async def _read(self, size: int) -> bytearray:
        loop, read = asyncio.get_running_loop(), bytearray(size)
        view, have = memoryview(read), 0
        while have < size:
            count = await loop.sock_recv_into(self._socket, view[have:])
            if not count:
                raise EOFError
            have += count
        return read


def _in_the_background(call: Callable[[], object]) -> None:
    """To take a process's memory back may last some 50 ms."""
    asyncio.get_running_loop().run_in_executor(None, call)


def _end(process: "subprocess.Popen[bytes]", connection: socket.socket) -> None:
    connection.close()
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1)


# The child sees the parent's import path (an editable install included).
_BOOTSTRAP = """
import sys
sys.path[:] = sys.argv[1:]
from onecard.engines.text.template_environment import serve
serve()
"""
