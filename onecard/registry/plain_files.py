"""Files that a stranger may have written, read without waiting for ever and without filling memory.

A pipe, a device or a socket can keep its reader, and a file can be as large as the disk: what a file is and
how much it holds is looked at before a byte of it is read.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any

SMALL = 8 << 20
"""Bytes of a file that is read whole and parsed in one go: the largest tokenizer_config.json in use has one
million."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class FileRefusedError(ValueError):
    """A file that can't be read, or won't be; the message names it and says why."""


def expanded(text: str) -> Path:
    """The path with its `~` replaced, where there is such a user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def is_there(path: Path) -> bool:
    """Whether there is anything at `path`, were it a link to nothing; False for what can't be a path."""
    try:
        path.lstat()
    except (OSError, ValueError):
        return False
    return True


def is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def regular_size(path: Path, most: int | None = None) -> int:
    """Bytes of the file `path`. Raises `FileRefusedError` for what is no file, or larger than `most`."""
    try:
        found = path.stat()
    except FileNotFoundError as error:
        why = "it is a link to a file that isn't there" if path.is_symlink() else "there is no such file"
        raise FileRefusedError(f"{path}: {why}") from error
    except (OSError, ValueError) as error:
        raise FileRefusedError(_unreadable(path, error)) from error
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise FileRefusedError(f"{path} can't be read: it is {kind}, not a file")
    if most is not None and found.st_size > most:
        raise FileRefusedError(
            f"{path} has {found.st_size:,} bytes; a file of its kind has {most:,} at most, so it isn't read"
        )
    return found.st_size


def read_bytes(path: Path, most: int = SMALL) -> bytes:
    """The content of a file of at most `most` bytes. Raises `FileRefusedError`."""
    size = regular_size(path, most)
    try:
        # Not to wait, should the file have become a pipe since; and no more than its size: files of /proc say
        # that they are empty and never end.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            return file.read(size)
    except OSError as error:
        raise FileRefusedError(_unreadable(path, error)) from error


def read_text(path: Path, most: int = SMALL) -> str:
    """The same as text in UTF-8, with or without a byte order mark."""
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileRefusedError(
            f"{path} can't be read: save it as UTF-8, it is not UTF-8 text (byte {error.start})"
        ) from error


def read_json(path: Path, most: int = SMALL) -> Any:
    """What the JSON in a file says. Raises `FileRefusedError`."""
    text = read_text(path, most)
    try:
        return json.loads(text)
    except ValueError as error:
        raise FileRefusedError(f"{path} is not valid JSON: {error}") from error
    except RecursionError as error:
        raise FileRefusedError(f"{path} is JSON nested too deeply to be read") from error


def _unreadable(path: Path, error: Exception) -> str:
    why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    return f"{_shortened(str(path))} can't be read: {why}"


def _shortened(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:150]}...{text[-100:]}"
