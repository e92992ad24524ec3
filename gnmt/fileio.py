"""Files: atomic writes, streams, locks, folders built by one process, hashes, and strict reading of UTF-8 lines.

Every file that a command line may name is written by `replacing`; `check_output` tells beforehand if it can be. All
locks are `file_lock`, an flock on a lock file. `folder_lock` holds one inside a folder in use. `building_lock` holds
one beside a file or folder that is being built.
"""

from __future__ import annotations

import bz2
import difflib
import errno
import fcntl
import gzip
import hashlib
import json
import logging
import lzma
import os
import re
import select
import shutil
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from gnmt.errors import InputError, format_value

log = logging.getLogger(__name__)

LINE_BREAKS = dict.fromkeys([0x0A, 0x0B, 0x0C, 0x0D, 0x1C, 0x1D, 0x1E, 0x85, 0x2028, 0x2029], " ")
"""Table for `str.translate` that replaces line breaks by spaces. It contains every character that some program reads as
the end of a line: LF, VT, FF, CR, FS, GS, RS, NEL, U+2028 and U+2029."""

_BOM = b"\xef\xbb\xbf"
# First bytes of files that are not UTF-8, with the kind of file and the remedy. The first match counts: the mark of
# little-endian UTF-32 begins with that of UTF-16.
_MAGIC_BYTES = (
    (b"\xff\xfe\x00\x00", "UTF-32 text", "convert it with `iconv -f utf-32 -t utf-8`"),
    (b"\x00\x00\xfe\xff", "UTF-32 text", "convert it with `iconv -f utf-32 -t utf-8`"),
    (b"\xff\xfe", "UTF-16 text", "convert it with `iconv -f utf-16 -t utf-8`"),
    (b"\xfe\xff", "UTF-16 text", "convert it with `iconv -f utf-16 -t utf-8`"),
    (b"\x1f\x8b", "a gzip file", "give it a name that ends in .gz, or unpack it"),
    (b"BZh", "a bzip2 file", "give it a name that ends in .bz2, or unpack it"),
    (b"\xfd7zXZ\x00", "an xz file", "give it a name that ends in .xz, or unpack it"),
)
# A file with a larger fraction of NUL characters in its first lines is refused: it may be UTF-16 without a mark.
_NUM_CHECKED_LINES, _MAX_NUL_FRACTION = 100, 0.1
_DESCRIPTOR_FOLDER = re.compile(r"/proc/\d+(/task/\d+)?/fd|/dev/fd")
_MAX_LINKS = 40  # more links in a row are a loop, as for the kernel
_MAX_JSON_DEPTH = 50
_MIN_SIMILARITY = 0.7  # between a missing file's name and the suggested one
_OPEN_COMPRESSED: dict[str, Callable[[str], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_PIPE_BYTES = 1 << 16  # Linux keeps this many bytes in a pipe

COMPRESSED_SUFFIXES = tuple(_OPEN_COMPRESSED)
"""Ends of names of compressed files, which are decompressed when they are read."""


# Atomic writes


@contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[BinaryIO]:
    """Open a temporary file for writing, and rename it to `path` when the block succeeds.

    The file is flushed to the disk before it is renamed. If the block fails, it is removed and `path` is unchanged. Its
    name is `temporary`, by default a hidden name beside `path`. A link is followed and stays a link, and an existing
    file keeps its mode and, where the system permits it, its owner. A stream (see `is_stream`) is written directly,
    after everything that it already holds. Raises OSError if the disk is full or not writable.
    """
    if is_stream(path):
        with _open_stream(path) as stream:
            yield stream
        return
    path = Path(os.path.realpath(path))
    temporary = temporary or _temporary_path(path)
    try:
        with _open_like(path, temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _open_like(path: Path, temporary: Path) -> BinaryIO:
    """Open a new file for writing, with the mode and the owner of the existing file at `path`."""
    try:
        old = path.stat()
    except FileNotFoundError:
        return temporary.open("wb")
    # Until it has its owner and mode, nobody else can open it.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode=0o600)
    for owner in ((-1, old.st_gid), (old.st_uid, -1)):
        with suppress(OSError):
            os.fchown(descriptor, *owner)
    with suppress(OSError):  # a file system without modes
        os.fchmod(descriptor, old.st_mode & 0o777)
    return open(descriptor, "wb")


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Replace the contents of `path` by `data`, as `replacing` does."""
    with replacing(path) as file:
        file.write(data)


def json_bytes(value: Any) -> bytes:
    """Return the contents of a JSON file for people to read; a path may hold bytes that are not UTF-8."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"  # a lone surrogate becomes its escape sequence in JSON


def check_output(key: str, path: str | Path, *, make_folder: bool = False) -> None:
    """Raise InputError if `replacing` could not write a file. Call it before the work whose result is written.

    Args:
        key: Config key of the path, for the message.
        path: Path of the file.
        make_folder: Make the folder of the file if it is missing.
    """
    if not str(path):
        raise InputError(f"{key}= names no file: give the path of a file")
    if str(path).endswith(os.sep):
        raise InputError(f"{key}={path} ends in {os.sep} as a folder does: give the path of a file")
    path = Path(path)
    try:
        if make_folder and not path.parent.exists():
            path.parent.mkdir(parents=True)
        if is_stream(path):
            number = _own_descriptor(path)
            writable = os.access(path, os.W_OK) if number is None else _is_open_for_writing(number)
            if not writable:
                raise PermissionError(errno.EACCES, "it is not open for writing")
        elif path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        elif not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, f"its folder {path.parent} does not exist")
        else:
            _try_to_write(path)
    except OSError as error:
        shown = format_value(str(path), quote=False)
        raise InputError(f"{key}={shown} cannot be written ({error.strerror}): choose another path") from None


def check_new_output(key: str, path: str | Path, *, make_folder: bool = False) -> None:
    """Raise InputError if a file or folder exists already or could not be written. Arguments as for `check_output`."""
    if os.path.lexists(path):
        raise InputError(f"{key}={path} exists already: choose another name, or remove it")
    check_output(key, path, make_folder=make_folder)


def check_output_folder(key: str, folder: str | Path) -> None:
    """Create the folder of several outputs; raise InputError if it cannot be created or written.

    Args:
        key: Config key of the path, for the message.
        folder: Path of the folder.
    """
    if not str(folder):
        raise InputError(f"{key}= names no folder: give the path of a folder")
    try:
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise NotADirectoryError(errno.ENOTDIR, "it is a file")
        Path(folder).mkdir(parents=True, exist_ok=True)
        _try_to_write(Path(folder) / "file")
    except OSError as error:
        shown = format_value(str(folder), quote=False)
        raise InputError(f"{key}={shown} cannot be written ({error.strerror}): choose another folder") from None


def _try_to_write(path: Path) -> None:
    """Create the temporary file of `replacing`, and remove it."""
    path = Path(os.path.realpath(path))
    temporary = _temporary_path(path)
    try:
        _open_like(path, temporary).close()
    finally:
        temporary.unlink(missing_ok=True)


# Streams


def is_stream(path: str | Path) -> bool:
    """Return whether a path leads to an open descriptor, such as /dev/stdout or /dev/fd/3, to a pipe or to a device.

    These are written to. Replaced by a new file they would lose what was written before, or stop being a device.
    """
    return _descriptor_entry(path) is not None or (
        os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)
    )


def _open_stream(path: Path) -> BinaryIO:
    """Open a stream for writing at its present position, or at the end if another process has opened it."""
    number = _own_descriptor(path)
    if number is None:
        return path.open("ab")
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()  # text that was printed before comes first
    return open(os.dup(number), "wb")


def _own_descriptor(path: str | Path) -> int | None:
    """Return the descriptor of this process that a path leads to; None if it leads to none."""
    folder, name = os.path.split(_descriptor_entry(path) or "")
    own = folder == "/dev/fd" or folder.startswith(f"/proc/{os.getpid()}/")
    return int(name) if own and name.isdecimal() else None


def _descriptor_entry(path: str | Path) -> str | None:
    """Follow links to an entry of a folder of open descriptors, and return its path; None if they lead elsewhere.

    On Linux, /dev/stdout is a link to /proc/self/fd/1, which is a link to the open file. That file has a path of its
    own, which is not the descriptor: it has another position, and appending would not be kept.
    """
    path = os.fspath(path)
    for _ in range(_MAX_LINKS):
        folder = os.path.realpath(os.path.dirname(path))
        if _DESCRIPTOR_FOLDER.fullmatch(folder):
            return os.path.join(folder, os.path.basename(path))
        if not os.path.islink(path):
            return None
        path = os.path.join(folder, os.readlink(path))
    return None


def _is_open_for_writing(number: int) -> bool:
    try:
        return fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    except OSError:
        return False


def discard_stdout() -> None:
    """Discard what is still to be written to stdout after an error; Python would try again when it exits."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def check_stdout(advice: str = "") -> None:
    """Raise InputError if standard output is closed. Call it in commands whose result is printed.

    Args:
        advice: Another way to get the result.
    """
    if sys.stdout is None:
        raise InputError(f"the result is printed to standard output, which is closed: redirect it to a file{advice}")


# Locks


@contextmanager
def file_lock(path: Path, wait_message: str | None = None) -> Iterator[None]:
    """Hold a lock on the file `path`, which is created and finally removed.

    If another process or thread holds the lock, the call logs `wait_message` and waits; without a message it raises
    BlockingIOError. The kernel releases the lock when its holder dies. On a file system without locks, every caller
    gets the lock.
    """
    while True:
        with path.open("wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if wait_message is None:
                    raise
                log.info("%s", wait_message)
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                pass  # a file system without locks
            if not _is_at(path, file.fileno()):
                continue  # the previous holder has removed the file, so another process may hold a lock on a new one
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(path: Path, descriptor: int) -> bool:
    """Return True if `path` still names the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextmanager
def folder_lock(folder: Path, lock_name: str, in_use_message: str) -> Iterator[None]:
    """Create `folder` if it is missing, and hold a lock on the file `lock_name` in it.

    If the previous holder removes the folder meanwhile, it is created again. Raises InputError with `in_use_message` if
    another process or thread holds the lock, and OSError if the folder cannot be created or written.
    """
    with ExitStack() as stack:
        while True:
            with suppress(FileExistsError):  # mkdir(exist_ok=True) raises it if the folder is removed meanwhile
                folder.mkdir()
            try:
                stack.enter_context(file_lock(folder / lock_name))
                break
            except BlockingIOError:
                raise InputError(in_use_message) from None
            except FileNotFoundError:
                if folder.is_symlink() or (folder / lock_name).is_symlink():
                    raise  # a dangling link: another attempt would fail too
        yield


@contextmanager
def building_lock(target: Path) -> Iterator[None]:
    """Hold the lock for building `target`, a file or folder; wait while another process or thread holds it.

    Unfinished folders that a killed process left beside `target` are removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(_beside(target, "lock"), wait_message=f"another process is making {target}; waiting for it"):
        _remove_unfinished(target)
        yield


# Folders built by one process


@contextmanager
def built_folder(folder: Path) -> Iterator[Path]:
    """Create a temporary folder, and rename it to `folder` when the block succeeds.

    An existing `folder` is replaced. If the block fails, the temporary folder is removed and `folder` is unchanged. Use
    this inside `building_lock`.
    """
    temporary = _beside(folder, "new")
    try:
        temporary.mkdir()
        yield temporary
        if folder.exists():
            folder.rename(_beside(folder, "old"))
        temporary.rename(folder)
    finally:
        _remove_unfinished(folder)


def work_folder(folder: Path) -> Path:
    """Return the path of a folder for intermediate files of building `folder`. They survive an interruption."""
    return _beside(folder, "work")


def _remove_unfinished(folder: Path) -> None:
    """Remove the temporary folders of `built_folder`, and restore a `folder` that was being replaced."""
    old = _beside(folder, "old")
    if old.exists() and not folder.exists():
        old.rename(folder)  # the process was killed between the two renames of a replacement
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(_beside(folder, "new"), ignore_errors=True)


def _beside(path: Path, role: str) -> Path:
    return path.with_name(f".{path.name}.{role}")


# Hashes


def path_list(paths: str | Path | Sequence[str | Path]) -> list[str]:
    """Return one path or several as a list."""
    return [str(paths)] if isinstance(paths, str | Path) else [str(path) for path in paths]


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def short_hash(text: str) -> str:
    """Return eight hexadecimal digits of the SHA-256 of a text, for names of files and folders."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


@dataclass(frozen=True)
class FileFingerprint:
    """Size in bytes, modification time and SHA-256 of a file at the time it was read."""

    path: str
    size: int
    mtime_ns: int
    sha256: str


def fingerprint_file(path: str, known: Mapping[str, FileFingerprint]) -> FileFingerprint:
    """Return the fingerprint of a file. The one in `known` is reused if its size and modification time are equal.

    Raises InputError for a pipe or a device, see `check_rereadable`.
    """
    try:
        check_rereadable(path)
        status = os.stat(path)
        old = known.get(path)
        if old is not None and (old.size, old.mtime_ns) == (status.st_size, status.st_mtime_ns):
            return old
        return FileFingerprint(path, status.st_size, status.st_mtime_ns, sha256_of(path))
    except OSError as error:
        raise _unreadable(path, error) from error


# JSON


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text from a foreign file.

    Raises ValueError if it is malformed, or nested more than 50 levels deep: functions that call themselves for each
    level would fail.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None
    level, depth = [value], 0
    while level:
        containers = [item for item in level if isinstance(item, dict | list)]
        level = [inner for item in containers for inner in (item.values() if isinstance(item, dict) else item)]
        depth += 1
        if depth > _MAX_JSON_DEPTH:
            raise ValueError("its values are nested too deeply")
    return value


# Lines


def read_lines(path: str) -> Iterator[str]:
    """Yield the lines of a UTF-8 file without their line ends; a name in COMPRESSED_SUFFIXES is decompressed.

    Only LF ends a line; a CR before it is removed too. U+2028, U+0085, form feeds and other CRs are text. A byte order
    mark at the start of the file is removed, and a file that contains nothing else has no line.

    Raises InputError with `path:line` for bytes that are not UTF-8, and with `path` for a file that is missing,
    unreadable, a damaged compressed file, or a text whose lines end in CR alone.
    """
    number = 0
    try:
        with open_binary(path) as file:
            for line in lines_of(file, path):
                number += 1
                yield line
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise _unreadable(path, error) from error
        kind = Path(path).suffix
        raise InputError(f"{path}: not a complete {kind} file (after line {number}): {error}") from error


def read_text_lines(path: str) -> Iterator[str]:
    """Yield lines as `read_lines` does, but raise InputError if many characters of the first lines are NUL."""
    lines = read_lines(path)
    first = list(islice(lines, _NUM_CHECKED_LINES))
    num_nuls = sum(line.count("\0") for line in first)
    num_characters = sum(len(line) for line in first)
    if num_nuls > _MAX_NUL_FRACTION * num_characters:
        little_endian = first[0][1::2].count("\0") * 2 >= first[0].count("\0")
        raise InputError(
            f"{path}: not UTF-8 text: {num_nuls} of its first {num_characters} characters are NUL; if it is UTF-16, "
            f"convert it with `iconv -f utf-16{'le' if little_endian else 'be'} -t utf-8`"
        )
    yield from first
    yield from lines


def lines_of(file: Iterable[bytes], name: str) -> Iterator[str]:
    """Yield the lines of an open binary file as `read_lines` does. Error messages use `name` as its path."""
    for number, line in enumerate(file, start=1):
        if number == 1 and line == _BOM:
            return
        yield _decode(line, name, number)


class PipeLines:
    """The lines of a pipe or a terminal as bytes, which can tell whether the next line is there already.

    Args:
        file: The open pipe. A file works too; its next line is always there.
    """

    def __init__(self, file: BufferedReader) -> None:
        self._file = file
        self._complete: deque[bytes] = deque()  # lines that were read and not returned yet
        self._incomplete: list[bytes] = []  # parts of the line after them
        self._has_ended = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        while not self._complete:
            if self._has_ended:
                raise StopIteration
            self._read()
        return self._complete.popleft()

    def is_ready(self, deadline: float) -> bool:
        """Wait until the next line, or the end, is there; return False if it is not at `deadline` (time.monotonic)."""
        poll = select.poll()
        poll.register(self._file, select.POLLIN)
        while not self._complete and not self._has_ended:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return False
            self._read()
        return True

    def _read(self) -> None:
        """Read what is in the pipe; wait if that is nothing."""
        data = self._file.read1(_PIPE_BYTES)
        first, *others = data.split(b"\n")
        self._incomplete.append(first)
        for part in others:
            self._complete.append(b"".join([*self._incomplete, b"\n"]))
            self._incomplete = [part]
        if not data:
            self._has_ended = True
            if rest := b"".join(self._incomplete):
                self._complete.append(rest)


def open_binary(path: str) -> BinaryIO:
    """Open a file for reading bytes, decompressed if its name ends in one of COMPRESSED_SUFFIXES."""
    return cast(BinaryIO, _OPEN_COMPRESSED.get(Path(path).suffix, _open_plain)(path))


def _open_plain(path: str) -> BinaryIO:
    return open(path, "rb")


def uncompressed_name(path: str) -> str:
    """Return the path without a suffix of COMPRESSED_SUFFIXES."""
    return path.removesuffix(Path(path).suffix) if Path(path).suffix in COMPRESSED_SUFFIXES else path


def _decode(line: bytes, path: str, number: int) -> str:
    """Return a line as text without its line end; raise InputError if it is not UTF-8. Line numbers begin with 1."""
    if number == 1:
        line = line.removeprefix(_BOM)
    is_whole_file = number == 1 and not line.endswith(b"\n")
    line = line.removesuffix(b"\n").removesuffix(b"\r") if line.endswith(b"\n") else line
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        if number == 1:
            for magic, kind, remedy in _MAGIC_BYTES:
                if line.startswith(magic):
                    raise InputError(f"{path}: not UTF-8, but {kind}: {remedy}") from None
        raise InputError(
            f"{path}:{number}: not UTF-8: byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line "
            f"({error.reason}); convert the file from its encoding, for example Latin-1 with "
            "`iconv -f latin1 -t utf-8`"
        ) from error
    if is_whole_file and (num_lines := sum(bool(part.strip()) for part in text.split("\r"))) > 1:
        raise InputError(
            f"{path}: its {num_lines} lines end in CR alone, where LF or CR LF must end a line: convert it with "
            r"`tr '\r' '\n'`"
        )
    return text


def encodable(text: str) -> str:
    """Return the text with lone surrogates, which UTF-8 cannot encode, replaced by U+FFFD.

    A pair of surrogates becomes the character that it encodes.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


# Unreadable files


class UnreadableFileError(InputError):
    """Raised for one or more files that are missing or cannot be opened; `problems` has a message for each."""

    def __init__(self, *problems: str) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        several = f"{len(self.problems)} files cannot be read:\n  " + "\n  ".join(self.problems)
        super().__init__(self.problems[0] if len(self.problems) == 1 else several)


def check_files(paths: Iterable[str]) -> None:
    """Raise UnreadableFileError with all files that cannot be read.

    No file is opened, because opening and closing a named pipe would break it for the later reader.
    """
    problems: list[str] = []
    for path in paths:
        try:
            os.stat(path)
            if os.path.isdir(path):
                raise IsADirectoryError
            if not os.access(path, os.R_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            problems += _unreadable(path, error).problems
    if problems:
        raise UnreadableFileError(*problems)


def check_rereadable(path: str, key: str = "") -> None:
    """Raise InputError for a pipe or a device, whose contents would be gone when it is read again.

    Args:
        path: Path of an existing file or folder.
        key: Config key of the path, for the message.
    """
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        shown = f"{key}={path}" if key else path
        raise InputError(f"{shown} is no plain file, and it must be read several times: write its contents to a file")


def missing_file(path: str) -> UnreadableFileError:
    """Return the error for a missing file. It suggests the file with the most similar name in the same folder."""
    folder, name = Path(path).parent, Path(path).name
    if not folder.is_dir():
        return UnreadableFileError(f"{path}: no such file, and its folder {folder} does not exist either")
    nearest = max(os.listdir(folder), key=lambda other: _similarity(name, other), default="")
    is_near = _similarity(name, nearest) >= _MIN_SIMILARITY
    return UnreadableFileError(f"{path}: no such file" + (f"; did you mean {folder / nearest}?" if is_near else ""))


def _similarity(name: str, other: str) -> float:
    """Return the similarity of two file names from 0 to 1. A common ending such as .en.gz is not compared."""
    (stem, dot, ending), (other_stem, _, other_ending) = name.partition("."), other.partition(".")
    if dot and ending == other_ending:
        name, other = stem, other_stem
    return difflib.SequenceMatcher(None, name, other).ratio()


def _unreadable(path: str, error: OSError) -> UnreadableFileError:
    """Return the error for a file that cannot be read, with a message for the user."""
    if isinstance(error, FileNotFoundError):
        return missing_file(path)
    if isinstance(error, IsADirectoryError):
        return UnreadableFileError(f"{path}: is a folder, expected a text file")
    return UnreadableFileError(f"{path}: cannot be read: {error.strerror or error}")
