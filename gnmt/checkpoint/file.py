"""Checkpoint files: their format, atomic writes, and reads that run no code."""

from __future__ import annotations

import errno
import importlib.metadata
import io
import pickle
import platform
import subprocess
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import torch
from torch import Tensor

from gnmt.device import is_out_of_memory
from gnmt.errors import InputError
from gnmt.fileio import replacing

_BLOCK_BYTES = 1 << 24


class UnreadableCheckpointError(InputError):
    """A file that may be sound and could not be read now: for want of memory, or of the disk or the network."""


def why_unreadable(path: Path, error: Exception) -> str | None:
    """The reason where reading failed for one that lies outside of the file; None where its bytes are to blame."""
    if is_out_of_memory(error):
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


FORMAT_VERSION = 2
# What every checkpoint says, besides what only continuing a run needs.
REQUIRED_ENTRIES = (
    "config",
    "tokenizers",
    "model",
    "step",
    "best",
    "best_step",
    "data_fingerprint",
    "preprocessed_folder",
    "precision",
)

Weights = Literal["averaged", "raw"]


def write_checkpoint(path: Path, contents: Mapping[str, Any]) -> None:
    """Writes contents under that name, or leaves what was there untouched.

    contents: nested dictionaries, lists, tuples, tensors and plain Python values; TypeError for anything else, such
    as a NumPy scalar, which could be written but not read. Raises OSError where the disk is full or not writable.
    """
    sealed = {**contents, "format_version": FORMAT_VERSION, "checksum": checksum(contents)}
    with replacing(path) as file:
        output = _Output(file)
        try:
            # Straight to the file: a copy in memory would be as large as the checkpoint.
            torch.save(sealed, cast(BinaryIO, output))
        except RuntimeError:  # what torch makes of a full disk
            if output.error is None:
                raise
            raise output.error from None


class _Output(io.RawIOBase):
    """A file to write, which remembers the error that it failed with."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self.error: OSError | None = None
        self._file = file

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise


def read_checkpoint(path: str | Path, required: Sequence[str] = ()) -> dict[str, Any]:
    """Return the contents of a checkpoint, tensors on the CPU, without running any code from the file.

    required: entries that the checkpoint must have, usually `REQUIRED_ENTRIES`. Raises InputError for a file that is missing, damaged, foreign or of another format version, and of that the
    UnreadableCheckpointError where the file is not to blame.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"checkpoint {path} is not a file{nearby_checkpoints(path)}")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
        intact = isinstance(contents, dict) and contents.get("checksum") == checksum(contents)
    except pickle.UnpicklingError:  # whose text recommends to load the file without protection
        raise InputError(
            f"checkpoint {path} was refused, and nothing in it ran: it is damaged, or holds objects that only running "
            "its code could rebuild, where checkpoints of this project hold plain values and tensors alone"
        ) from None
    except Exception as error:  # damaged bytes lead torch's reader to errors of every kind, in words of its own parts
        if reason := why_unreadable(path, error):
            raise UnreadableCheckpointError(f"checkpoint {path} cannot be read: {reason}") from None
        raise InputError(f"checkpoint {path} {what_is_wrong(path)}: use another one of its folder") from None
    if not isinstance(contents, dict) or "format_version" not in contents:
        raise InputError(f"{path} is a torch file, but no checkpoint of this project: it has no format_version")
    if contents["format_version"] != FORMAT_VERSION:
        raise InputError(
            f"checkpoint {path} has format version {contents['format_version']}, this code reads {FORMAT_VERSION}: "
            "use the version of gnmt that wrote it"
        )
    if not intact:
        raise InputError(f"checkpoint {path} is damaged: its checksum differs; use another one of its folder")
    if missing := [entry for entry in required if entry not in contents]:
        raise InputError(f"checkpoint {path} lacks required entries: {', '.join(missing)}")
    return contents


def checksum(contents: Mapping[str, Any]) -> int:
    """CRC-32 of all values but the seal itself, in the dictionary's order."""
    value = 0
    for piece in _bytes_of({key: contents[key] for key in contents if key not in ("format_version", "checksum")}):
        value = zlib.crc32(piece, value)
    return value


def _bytes_of(value: Any) -> Iterator[bytes | memoryview]:
    if isinstance(value, Tensor):
        yield f"{value.dtype}{tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield repr(key).encode()
            yield from _bytes_of(item)
    elif isinstance(value, list | tuple):
        yield f"{type(value).__name__}{len(value)}".encode()
        for item in value:
            yield from _bytes_of(item)
    elif value is None or type(value) in (bool, int, float, str, bytes):
        yield repr(value).encode()
    else:
        raise TypeError(f"a checkpoint holds tensors and plain values, and no {type(value).__name__}")


def software_versions() -> dict[str, str]:
    """What a checkpoint is made with, besides torch."""
    packages = {name: importlib.metadata.version(name) for name in ("gnmt", "sentencepiece")}
    return {**packages, "python": platform.python_version()}


def git_revision() -> str | None:
    """The commit of this source tree, with "-dirty" where it has changes; None outside its own git repository.

    An installed gnmt may lie in the repository of another project, whose commit says nothing of it: there git ignores
    it or does not know it.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        _said_by([*git, "ls-files", "--error-unmatch", Path(__file__).name])
        return _said_by([*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"])
    except (OSError, subprocess.SubprocessError):
        return None


def _said_by(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
