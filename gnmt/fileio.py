"""Files: atomic writes, locks, folders built by one process, hashes, and strict UTF-8 lines."""

from __future__ import annotations

import difflib
import errno
import fcntl
import gzip
import hashlib
import logging
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, cast

from gnmt.errors import InputError

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


_SIMILAR = 0.7
_BOM = b"\xef\xbb\xbf"
# How files begin that are no UTF-8: what they are, and what to do. UTF-32 first, whose mark begins with that of UTF-16.
_OTHER_BEGINNINGS = (
    (b"\xff\xfe\x00\x00", "UTF-32 text", "convert it with `iconv -f utf-32 -t utf-8`"),
    (b"\x00\x00\xfe\xff", "UTF-32 text", "convert it with `iconv -f utf-32 -t utf-8`"),
    (b"\xff\xfe", "UTF-16 text", "convert it with `iconv -f utf-16 -t utf-8`"),
    (b"\xfe\xff", "UTF-16 text", "convert it with `iconv -f utf-16 -t utf-8`"),
    (b"\x1f\x8b", "a gzip file", "give it a name that ends in .gz, or unpack it"),
)
# Of the first so many lines, more than this share of NULs is no text.
_LOOKED_AT_LINES, _LARGEST_SHARE_OF_NULS = 100, 0.1
# Everything that some reader takes for the end of a line: LF, VT, FF, CR, FS, GS, RS, NEL, U+2028, U+2029.
LINE_BREAKS = dict.fromkeys([0x0A, 0x0B, 0x0C, 0x0D, 0x1C, 0x1D, 0x1E, 0x85, 0x2028, 0x2029], " ")


def read_lines(path: str) -> Iterator[str]:
    """The lines of a UTF-8 file (gzip where its name ends in .gz), streamed, without their ends.

    Only LF ends a line, and one CR before it goes with it; U+2028, U+0085, form feeds and lone CRs are
    text. A byte order mark at the start of the file is removed, and a file of nothing else has no line.
    Raises InputError with `path:line` for bytes that are not UTF-8, and for a file that is missing,
    unreadable or a damaged gzip.
    """
    number = 0
    try:
        with open_binary(path) as file:
            for line in lines_of(file, path):
                number += 1
                yield line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a whole gzip file (after line {number}): {error}") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def lines_of(file: Iterable[bytes], name: str) -> Iterator[str]:
    """The lines of an open binary file, as `read_lines` gives them; name: what errors call it."""
    for number, line in enumerate(file, start=1):
        if number == 1 and line == _BOM:
            return
        yield _decode(line, name, number)


def read_text_lines(path: str) -> Iterator[str]:
    """`read_lines` of a corpus, with an InputError too where it begins with many NULs, as UTF-16 may."""
    lines = read_lines(path)
    first = list(islice(lines, _LOOKED_AT_LINES))
    num_nuls, num_characters = sum(line.count("\0") for line in first), sum(map(len, first))
    if num_nuls > _LARGEST_SHARE_OF_NULS * num_characters:
        low_byte_first = first[0][1::2].count("\0") * 2 >= first[0].count("\0")
        raise InputError(
            f"{path}: no UTF-8 text: {num_nuls} of its first {num_characters} characters are NUL; if it is UTF-16, "
            f"convert it with `iconv -f utf-16{'le' if low_byte_first else 'be'} -t utf-8`"
        )
    yield from first
    yield from lines


def open_binary(path: str) -> BinaryIO:
    """The file's bytes, unpacked where its name ends in .gz."""
    return cast(BinaryIO, gzip.open(path, "rb")) if path.endswith(".gz") else open(path, "rb")


def _decode(line: bytes, path: str, number: int) -> str:
    if number == 1:
        line = line.removeprefix(_BOM)
    line = line.removesuffix(b"\n").removesuffix(b"\r") if line.endswith(b"\n") else line
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        for beginning, kind, advice in _OTHER_BEGINNINGS if number == 1 else ():
            if line.startswith(beginning):
                raise InputError(f"{path}: not UTF-8, but {kind}: {advice}") from None
        raise InputError(
            f"{path}:{number}: not UTF-8: byte 0x{line[error.start]:02x}, number {error.start + 1} of the line "
            f"({error.reason}); convert the file from the encoding that it has, such as Latin-1 with "
            "`iconv -f latin1 -t utf-8`"
        ) from error


class UnreadableFileError(InputError):
    """A file that is missing or cannot be opened, or several. problems: a sentence for each."""

    def __init__(self, *problems: str) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        several = f"{len(self.problems)} files cannot be read:\n  " + "\n  ".join(self.problems)
        super().__init__(self.problems[0] if len(self.problems) == 1 else several)


def check_files(paths: Iterable[str]) -> None:
    """Raises UnreadableFileError with all that cannot be read, before the first is; pipes are not touched."""
    problems: list[str] = []
    for path in paths:
        try:
            os.stat(path)
            number = errno.EISDIR if os.path.isdir(path) else 0 if os.access(path, os.R_OK) else errno.EACCES
            if number:
                raise OSError(number, os.strerror(number))  # which Python makes the subclass of that number
        except OSError as error:
            problems += _unreadable(path, error).problems
    if problems:
        raise UnreadableFileError(*problems)


def missing_file(path: str) -> UnreadableFileError:
    """The error for a file that is not there, with the nearest name that is."""
    folder, name = Path(path).parent, Path(path).name
    if not folder.is_dir():
        return UnreadableFileError(f"{path}: no such file, and its folder {folder} does not exist either")
    nearest = max(os.listdir(folder), key=lambda other: _similarity(name, other), default="")
    is_near = _similarity(name, nearest) >= _SIMILAR
    return UnreadableFileError(f"{path}: no such file" + (f"; did you mean {folder / nearest}?" if is_near else ""))


def _similarity(name: str, other: str) -> float:
    """From 0 to 1, of two file names; an ending that both have, such as .en.gz, makes short names no more similar."""
    (stem, dot, ending), (other_stem, _, other_ending) = name.partition("."), other.partition(".")
    if dot and ending == other_ending:
        name, other = stem, other_stem
    return difflib.SequenceMatcher(None, name, other).ratio()


def _unreadable(path: str, error: OSError) -> UnreadableFileError:
    if isinstance(error, FileNotFoundError):
        return missing_file(path)
    if isinstance(error, IsADirectoryError):
        return UnreadableFileError(f"{path}: a folder, where a file of text is needed")
    return UnreadableFileError(f"{path}: cannot be read: {error.strerror or error}")


@dataclass(frozen=True)
class FileStamp:
    """What a file held when it was read: size in bytes, modification time, sha256 of its bytes."""

    path: str
    size: int
    mtime_ns: int
    sha256: str


def stamp_file(path: str, known: Mapping[str, FileStamp]) -> FileStamp:
    """The file's stamp; the hash is taken from `known` where path, size and modification time agree with it."""
    try:
        status = os.stat(path)
        old = known.get(path)
        if old is not None and (old.size, old.mtime_ns) == (status.st_size, status.st_mtime_ns):
            return old
        with open(path, "rb") as file:
            return FileStamp(path, status.st_size, status.st_mtime_ns, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise _unreadable(path, error) from error


def encodable(text: str) -> str:
    """The text as UTF-8 can hold it: two half surrogates that belong together become their character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        # Through UTF-16, where a half without the other becomes U+FFFD.
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the right to build the folder; waits while another process (or thread) holds it.

    What a dead process left half-made beside the folder is cleared away: whoever holds the lock knows
    that nobody is building. The kernel gives the lock back when its holder dies. See `exclusive`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(_beside(folder, "lock"), wait=f"another process is making {folder}; waiting for it"):
        _clear(folder)
        yield


@contextmanager
def built_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill, which takes the place of `folder` if the block ends without an error.

    To be used under `locked`. After an error the temporary folder is removed and `folder` is as before.
    """
    temporary = _beside(folder, "new")
    try:
        temporary.mkdir()
        yield temporary
        if folder.exists():
            folder.rename(_beside(folder, "old"))
        temporary.rename(folder)
    finally:
        _clear(folder)


def work_folder(folder: Path) -> Path:
    """Where the work of a preparation lies until the folder is whole; what was done survives an interruption."""
    return _beside(folder, "work")


def _clear(folder: Path) -> None:
    old = _beside(folder, "old")
    if old.exists() and not folder.exists():
        old.rename(folder)  # stopped between the two renames of a replacement
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(_beside(folder, "new"), ignore_errors=True)


def _beside(folder: Path, role: str) -> Path:
    return folder.with_name(f".{folder.name}.{role}")
