"""What is wrong with a file that does not read as a checkpoint, in words."""

from __future__ import annotations

import errno
import zipfile
from pathlib import Path

from gnmt.types import InputError

# What the allocators of torch say; a RuntimeError as all of its errors are.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "Cannot allocate memory")
_BLOCK_BYTES = 1 << 24


class UnreadableCheckpointError(InputError):
    """A file that may be sound and could not be read now: for want of memory, or of the disk or the network."""


def why_unreadable(path: Path, error: Exception) -> str | None:
    """The reason where reading failed for one that lies outside of the file; None where its bytes are to blame."""
    if is_for_want_of_memory(error):
        return "there is not enough memory"
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: a damaged file led astray
        return error.strerror or str(error)
    try:
        with path.open("rb") as file:  # torch's reader may make another error of the system's
            while file.read(_BLOCK_BYTES):
                pass
    except OSError as own:
        return own.strerror or str(own)
    return None


def is_for_want_of_memory(error: Exception) -> bool:
    """Whether Python or torch says that the system has no memory left."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)


def what_is_wrong(path: Path) -> str:
    """How a file that torch cannot read differs from a checkpoint, which is a zip archive."""
    with path.open("rb") as file:
        start = file.read(4)
    if not start:
        return "is damaged: it is empty"
    try:
        has_end = zipfile.is_zipfile(path)  # the table of contents stands there
    except zipfile.BadZipFile:
        has_end = True
    if start == b"PK\3\4" and not has_end:
        return "is damaged: it is cut off, its end is missing"
    return "is damaged or is no checkpoint"


def nearby_checkpoints(path: Path) -> str:
    """What a reader of "no such file" would look for next."""
    folders = [path.parent, path.parent / "checkpoints", path]
    found = sorted(str(file) for folder in folders if folder.is_dir() for file in folder.glob("*.pt"))
    return f"; there are: {', '.join(found[:8])}" if found else f"; no *.pt lies in {path.parent} either"


def first_line(error: BaseException) -> str:
    """An exception's first line, or its kind where it has no text."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
