"""The checkpoint file: its format, atomic writes, and reads that run no code from the file.

A checkpoint is a dictionary of tensors and plain Python values, saved by torch.save. Every checkpoint has
`REQUIRED_ENTRIES`. A full checkpoint also has the state from which a run resumes: optimizer, averaged weights, random
state, loader state and train state. A weights-only checkpoint such as best.pt is for inference alone.
"""

from __future__ import annotations

import errno
import importlib.metadata
import io
import os
import pickle
import platform
import subprocess
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import torch
from torch import Tensor

from gnmt.device import is_out_of_memory
from gnmt.errors import InputError
from gnmt.fileio import replacing, sha256_of

FORMAT_VERSION = 3
"""The version of the format; raise it when the meaning of an entry changes."""

REQUIRED_ENTRIES = (
    "config",  # the resolved config, as JSON
    "tokenizers",  # see Tokenizers.to_checkpoint
    "model",  # the state_dict
    "step",
    "best",  # dev scores of the best evaluation, by tag
    "best_step",
    "data_fingerprint",
    "preprocessed_folder",
    "precision",
    "unused_target_ids",
    "git_revision",
    "torch_version",
    "versions",  # see `software_versions`
)
"""The entries of every checkpoint; `read_checkpoint(path, REQUIRED_ENTRIES)` checks that they exist."""

Weights = Literal["averaged", "raw"]
"""The weights to load: the moving average of a run with trainer.ema_decay, or those that the optimizer updates."""

_ADDED_ENTRIES = ("format_version", "checksum")  # `write_checkpoint` adds them
_READ_BYTES = 1 << 24


class UnreadableCheckpointError(InputError):
    """A checkpoint cannot be read now, because of the memory, the disk or the network, but may be intact."""


# Write and read


def write_checkpoint(path: Path, contents: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically: after an error, the previous file is unchanged.

    Args:
        path: The file.
        contents: Nested dictionaries, lists, tuples, tensors and plain Python values.

    Raises:
        TypeError: Contents hold another type, such as a NumPy scalar, which could be written but not read.
        OSError: The disk is full or not writable.
    """
    complete = {**contents, "format_version": FORMAT_VERSION, "checksum": checksum(contents)}
    with replacing(path) as file:
        output = _Output(file)
        try:
            # Write directly to the file: a buffer in memory would be as large as the checkpoint.
            torch.save(complete, cast(BinaryIO, output))
        except RuntimeError:  # torch raises it in place of the OSError
            if output.error is None:
                raise
            raise output.error from None


class _Output(io.RawIOBase):
    """Forward writes to a file, and keep the OSError of a failed one."""

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

    Args:
        path: The file.
        required: Entries that must exist, usually `REQUIRED_ENTRIES`.

    Raises:
        UnreadableCheckpointError: The file cannot be read now, but may be intact.
        InputError: The file is missing, damaged, not a checkpoint, of another format version, or lacks an entry.
    """
    path = Path(path)
    if not os.path.isfile(path):  # unlike Path.is_file, it returns False for a name that is too long
        raise InputError(f"checkpoint {path} is not a file{nearby_checkpoints(path)}")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
        is_intact = isinstance(contents, dict) and contents.get("checksum") == checksum(contents)
    except pickle.UnpicklingError:  # torch's message recommends to load the file without protection
        raise InputError(
            f"checkpoint {path} was refused, and no code from it ran: it is damaged, or holds objects that only "
            "code from the file could rebuild; a checkpoint of gnmt holds only tensors and plain values"
        ) from None
    except Exception as error:  # damaged bytes make torch's reader raise errors of any type
        if reason := _reading_problem(path, error):
            raise UnreadableCheckpointError(f"checkpoint {path} cannot be read: {reason}") from None
        raise InputError(f"checkpoint {path} {_describe_damage(path)}; use another one from its folder") from None
    if not isinstance(contents, dict) or "format_version" not in contents:
        raise InputError(f"{path} is a torch file, but not a checkpoint of gnmt: it has no format_version")
    if contents["format_version"] != FORMAT_VERSION:
        raise InputError(
            f"checkpoint {path} has format version {contents['format_version']}, this code reads {FORMAT_VERSION}: "
            "use the version of gnmt that wrote it"
        )
    if not is_intact:
        raise InputError(f"checkpoint {path} is damaged: its checksum differs; use another one from its folder")
    if missing := [entry for entry in required if entry not in contents]:
        raise InputError(f"checkpoint {path} lacks required entries: {', '.join(missing)}")
    return contents


def checksum(contents: Mapping[str, Any]) -> int:
    """Return the CRC-32 of all entries, in the dictionary's order, except those that `write_checkpoint` adds."""
    value = 0
    for data in _bytes_of({key: contents[key] for key in contents if key not in _ADDED_ENTRIES}):
        value = zlib.crc32(data, value)
    return value


def _bytes_of(value: Any) -> Iterator[bytes | memoryview]:
    """Yield bytes that determine the value: types, shapes, keys and data."""
    if isinstance(value, Tensor):
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError("a tensor has more values than its storage")  # it would need any amount of memory
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
        raise TypeError(f"a checkpoint holds tensors and plain values, found {type(value).__name__}")


# Explanations of failed reads


def _reading_problem(path: Path, error: Exception) -> str | None:
    """Return the reason why a file could not be read, or None if its bytes are damaged."""
    if is_out_of_memory(error):
        return "there is not enough memory"
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # a damaged file may lead to EINVAL
        return error.strerror or str(error)
    try:
        with path.open("rb") as file:  # torch's reader may raise another error in place of an OSError
            while file.read(_READ_BYTES):
                pass
    except OSError as system_error:
        return system_error.strerror or str(system_error)
    return None


def _describe_damage(path: Path) -> str:
    """Return the rest of a message about a file that torch cannot read. An intact checkpoint is a zip archive."""
    with path.open("rb") as file:
        start = file.read(4)
    if not start:
        return "is damaged: it is empty"
    try:
        has_end = zipfile.is_zipfile(path)  # looks for the directory at the end of the archive
    except zipfile.BadZipFile:
        has_end = True
    if start == b"PK\3\4" and not has_end:
        return "is damaged: its end is missing"
    return "is damaged or is not a checkpoint"


def nearby_checkpoints(path: Path) -> str:
    """Return the end of a message about a missing checkpoint, with the checkpoints near its path."""
    folders = [path.parent, path.parent / "checkpoints", path]
    found = sorted(str(file) for folder in folders if os.path.isdir(folder) for file in folder.glob("*.pt"))
    return f"; existing checkpoints: {', '.join(found[:8])}" if found else f"; {path.parent} has no *.pt either"


# Versions


def software_versions() -> dict[str, str]:
    """Return the versions of gnmt, SentencePiece and Python."""
    packages = {name: importlib.metadata.version(name) for name in ("gnmt", "sentencepiece")}
    return {**packages, "python": platform.python_version()}


def git_revision() -> str | None:
    """Return the commit of this source tree, with "-dirty" if it has changes, or None outside its own repository.

    An installed gnmt may be inside the repository of another project, which does not track it. The commit of that
    repository is not returned.
    """
    try:
        _run_git("ls-files", "--error-unmatch", Path(__file__).name)
        return _run_git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _run_git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def sha256_of_checkpoints(checkpoints: Iterable[str | Path]) -> list[str]:
    """Return the sha256 of each file; raises InputError if one cannot be read."""
    try:
        return [sha256_of(path) for path in checkpoints]
    except OSError as error:  # deleted since the model was loaded
        raise InputError(f"checkpoint {error.filename} cannot be read ({error.strerror})") from error


def short_digests(checkpoints: Iterable[str | Path]) -> tuple[str, ...]:
    """Return the first 12 digits of each file's sha256; raises InputError if a file cannot be read."""
    return tuple(digest[:12] for digest in sha256_of_checkpoints(checkpoints))
