"""Files that appear whole or not at all, and files that only one process holds."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)


@contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write that takes the name `path` when the block ends well; otherwise what was there stays.

    It has the name `temporary` until then (by default a hidden one beside `path`), is flushed to the disk before it is
    renamed, and is removed when the block fails. Raises OSError where the disk is full or not writable.
    """
    temporary = temporary or path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256_of(path: str | Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Makes `path` hold these bytes; see `replacing`."""
    with replacing(path) as file:
        file.write(data)


@contextmanager
def exclusive(path: Path, wait: str | None = None) -> Iterator[None]:
    """Holds a lock file, which is removed at the end.

    wait: where another process or thread holds it, None raises BlockingIOError; a text is logged, and it is waited for.
    The kernel gives the lock back when its holder dies, however it does. On a file system without locks all pass.
    """
    while True:
        with path.open("wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if wait is None:
                    raise
                log.info("%s", wait)
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                pass
            if not is_same_file(path, file.fileno()):
                continue  # the holder before us has removed it; a lock on a removed file guards nothing
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def is_same_file(path: Path, descriptor: int) -> bool:
    """Whether the open file is the one that the path names now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
