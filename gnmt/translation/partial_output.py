"""The partial output: a folder beside an output file, from which an interrupted translation resumes.

`<output>.partial/` holds `manifest.json`, with everything that the output depends on, and one file for each finished
chunk: `chunk-000000` and so on. A chunk file is a line of JSON with the number and the sha256 of the lines that were
translated, followed by the bytes for the output. It is written atomically. A chunk depends on the manifest's settings
and on its lines alone, so if both are equal, it can be used, no matter which process wrote it.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import logging
import lzma
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from gnmt.distributed import Ranks
from gnmt.errors import InputError, describe_changes, format_count
from gnmt.fileio import folder_lock, json_bytes, replacing, write_atomically

log = logging.getLogger(__name__)

_SUFFIX = ".partial"
_MANIFEST, _LOCK, _MERGED, _CHUNK = "manifest.json", "lock", "merged", "chunk-"
# The names of all files that this module writes; the last alternative matches files that are being written.
_OWN_NAMES = re.compile(r"lock|manifest\.json|merged|chunk-\d{6,}|\.(manifest\.json|chunk-\d{6,})\.\d+\.tmp")
# zlib's default; Python's own, 9, takes twice the time for output that is 1 % smaller.
_COMPRESSION_LEVEL = 6
_COMPRESSORS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": partial(gzip.GzipFile, "", "wb", _COMPRESSION_LEVEL, mtime=0),
    ".bz2": partial(bz2.BZ2File, mode="wb"),
    ".xz": partial(lzma.LZMAFile, mode="wb"),
}


@dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`.

    Args:
        settings: Nested values that the output depends on.
        finished: Size in bytes and modification time in ns of the output; None until it is written.
        device_name: Name of the processor or GPU on which the translation was started.
    """

    settings: Mapping[str, Any]
    finished: list[int] | None
    device_name: str


class Chunk(NamedTuple):
    """Lines that are translated together.

    Args:
        number: Index of the chunk, from 0.
        first_line: Line number of its first line in the input, from 1.
        lines: The lines without line ends.
        prefixes: One target prefix for each line, or None.
    """

    number: int
    first_line: int
    lines: list[str]
    prefixes: list[str] | None = None

    def sha256(self) -> str:
        """Return the sha256 of the lines and prefixes, each ended by LF."""
        texts = [*self.lines, *(self.prefixes or ())]
        return hashlib.sha256("".join(f"{text}\n" for text in texts).encode()).hexdigest()


class TranslatedChunk(NamedTuple):
    """The output of a chunk.

    Args:
        data: UTF-8 bytes.
        num_unfinished: Number of translations that the length limit cut off.
        num_omitted: Number of hypotheses that the format leaves out.
    """

    data: bytes
    num_unfinished: int
    num_omitted: int = 0


class PartialOutput:
    """The finished chunks of one output file, in the folder `<output>.partial`.

    Methods that write raise InputError if the disk is full or not writable.

    Args:
        output: Path of the output file. A link is followed and stays a link.
    """

    def __init__(self, output: str | Path) -> None:
        self._name = output
        self.output = Path(os.path.realpath(output))
        self.folder = self.output.with_name(f"{self.output.name}{_SUFFIX}")
        self._hashes: list[str] = []  # the sha256 of each chunk of the input, filled by `unfinished`
        self._has_warned = False

    @staticmethod
    def is_at(folder: Path) -> bool:
        """Return whether the folder is the partial output of some file."""
        return folder.suffix == _SUFFIX and (folder / _MANIFEST).exists()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and hold its lock; at the end, remove the folder if it is empty.

        Raises InputError if another process holds the lock. On a file system without locks, two processes may do the
        same work.
        """
        in_use = (
            f"{self.folder} is in use: another process translates to {self.output}; wait for it, or write to another "
            "file"
        )
        try:
            with ExitStack() as stack:
                with self._disk_errors():
                    stack.enter_context(folder_lock(self.folder, _LOCK, in_use))
                if self.output.exists() and not self.output.stat().st_mode & stat.S_IROTH:
                    with suppress(OSError):  # the folder of another user
                        self.folder.chmod(0o700)  # the chunks are as private as the output that they replace
                yield
        finally:
            with suppress(OSError):  # not empty; a process that needs the folder at this moment makes it again
                self.folder.rmdir()

    def prepare(self, settings: Mapping[str, Any], resume: str, device_name: str) -> None:
        """Keep the chunks that were made with these settings, and write the manifest.

        Until the first chunk is finished, settings may change. A warning says that last digits may differ if the
        translation was started on another device.

        Args:
            settings: Nested JSON values that the output depends on.
            resume: "never" deletes all finished chunks; otherwise chunks with other settings raise InputError.
            device_name: Name of this process's processor or GPU.

        Raises:
            InputError: If the chunks have other settings, or if the folder is no partial output.
        """
        with self._disk_errors():
            self._refuse_foreign_folder()
            if resume == "never" or not self._can_resume(settings):
                self.clear()
                self._write_manifest(Manifest(settings, None, device_name))
            elif (first_device := self.manifest().device_name) != device_name:
                log.warning(
                    "%s was started on %s and is resumed on %s: scores may differ in their last digits from those of "
                    "one device, and in rare cases a translation may",
                    self.folder,
                    first_device,
                    device_name,
                )
            for path in self.folder.glob(".*.tmp"):  # of processes that were killed
                path.unlink()

    def manifest(self) -> Manifest:
        """Read the manifest; raises InputError if it is damaged."""
        path = self.folder / _MANIFEST
        try:
            values = json.loads(path.read_bytes())
            return Manifest(dict(values["settings"]), values["finished"], values["device_name"])
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{path} is damaged: give resume=never to restart from scratch") from None

    def finished_chunks(self) -> dict[int, int]:
        """Return the number of lines of each finished chunk, by the chunk's number; 0 for a damaged file."""
        names = (path.name for path in self.folder.glob(f"{_CHUNK}*"))
        numbers = sorted(int(name.removeprefix(_CHUNK)) for name in names if _OWN_NAMES.fullmatch(name))
        return {number: self._head(number).get("lines", 0) for number in numbers}

    def unfinished(self, chunks: Iterable[Chunk], source: str, ranks: Ranks) -> Iterator[Chunk]:
        """Yield the chunks that this process must translate and write. If it is rank 0, `merge` may follow.

        Each rank gets its chunks (number modulo world size) that are not finished. The input may have changed between
        its fingerprint and an earlier reading, so a finished chunk counts only if it was made from the lines that are
        read now. Rank 0 then waits for the others and gets all chunks whose files were replaced in the meantime.

        Args:
            chunks: All chunks of the input, with the same lines in each iteration.
            source: Path of the input, for a warning.
            ranks: The processes that share the chunks.
        """
        self._hashes = []
        for chunk in chunks:
            self._hashes.append(chunk.sha256())
            if chunk.number % ranks.world_size == ranks.rank and not self._is_finished(chunk.number):
                self._warn_of_other_lines(chunk, source)
                yield chunk
        ranks.wait_for_all()
        if not ranks.is_rank_0:
            return
        replaced = {number for number in range(len(self._hashes)) if not self._is_finished(number)}
        for chunk in chunks if replaced else ():
            if chunk.number in replaced:
                self._warn_of_other_lines(chunk, source)
                yield chunk

    def write_chunk(self, chunk: Chunk, translated: TranslatedChunk) -> None:
        """Write a finished chunk."""
        contents = {
            "lines": len(chunk.lines),
            "unfinished": translated.num_unfinished,
            "omitted": translated.num_omitted,
            "sha256": chunk.sha256(),
        }
        head = json.dumps(contents).encode()
        with self._disk_errors():
            write_atomically(self._chunk_path(chunk.number), head + b"\n" + translated.data)

    def merge(self, heading: bytes) -> tuple[int, int]:
        """Write all chunks to the output file, delete them, and return the sums of `num_unfinished` and `num_omitted`.

        Call it after the last chunk of `unfinished` is written. The output file is replaced atomically.
        """
        num_chunks, num_unfinished, num_omitted = len(self._hashes), 0, 0
        with self._disk_errors():
            with (
                replacing(self.output, temporary=self.folder / _MERGED) as file,
                compressed(file, self.output.name) as merged,
            ):
                merged.write(heading)
                for number in range(num_chunks):
                    head, _, data = self._chunk_path(number).read_bytes().partition(b"\n")
                    counts = json.loads(head)
                    num_unfinished += counts["unfinished"]
                    num_omitted += counts["omitted"]
                    merged.write(data)
            self._write_manifest(replace(self.manifest(), finished=self._size_and_time()))
            for number in range(num_chunks):
                self._chunk_path(number).unlink()
        return num_unfinished, num_omitted

    def clear(self) -> None:
        """Delete all chunks and the manifest; the lock stays.

        The manifest is deleted last: if the process is killed in between, no chunk is left without its settings.
        """
        own = {path.name: path for path in self.folder.iterdir() if _OWN_NAMES.fullmatch(path.name)}
        for name in sorted(own.keys() - {_LOCK, _MANIFEST}):
            own[name].unlink()
        (self.folder / _MANIFEST).unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the files of this module. Call it inside `locked`, whose end deletes the lock and the empty folder."""
        with suppress(OSError):
            self.clear()

    def resume_hint(self) -> str:
        """Return the end of an error message that says how to resume; empty if no chunk is finished."""
        num_chunks = len(self.finished_chunks())
        if not num_chunks:
            return ""
        return f"; {self.folder} keeps {format_count(num_chunks, 'chunk')}, and the same command resumes from there"

    def _can_resume(self, settings: Mapping[str, Any]) -> bool:
        """Return whether chunks or a complete output can be used; raises InputError if they have other settings."""
        num_chunks = len(self.finished_chunks())
        chunks = format_count(num_chunks, "chunk")
        if not (self.folder / _MANIFEST).exists():
            if num_chunks:
                raise InputError(
                    f"{self.folder} holds {chunks} and no {_MANIFEST} with their settings: give resume=never to "
                    "delete them and restart from scratch"
                )
            return False
        manifest = self.manifest()
        if manifest.finished is not None:
            self._refuse_other_settings(f"marks {self.output.name} as complete", manifest.settings, settings)
            # If the output has changed since, it must be made again, and its chunks are deleted.
            return manifest.finished == self._size_and_time()
        if num_chunks:
            self._refuse_other_settings(f"holds {chunks}", manifest.settings, settings)
        return num_chunks > 0

    def _refuse_foreign_folder(self) -> None:
        """Raise InputError if the folder holds files of someone else and no manifest."""
        names = sorted(path.name for path in self.folder.iterdir())
        foreign = [name for name in names if not _OWN_NAMES.fullmatch(name)]
        if foreign and _MANIFEST not in names:
            raise InputError(
                f"{self.folder} is in the way and is no partial output: it holds {foreign[0]}, but no {_MANIFEST}; "
                "move it, or write to another output"
            )

    def _refuse_other_settings(self, state: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        """Raise InputError with a list of the settings that differ, if any do."""
        changes = describe_changes(old, new)
        if changes:
            raise InputError(
                f"{self.folder} {state}, made with other settings or input:\n  " + "\n  ".join(changes) + "\n"
                "Give the old settings and input to resume, or resume=never to delete it and restart from scratch"
            )

    def _is_finished(self, number: int) -> bool:
        """Return whether the chunk is finished and was made from the lines that were read."""
        return self._head(number).get("sha256") == self._hashes[number]

    def _head(self, number: int) -> dict[str, Any]:
        """Return the JSON at the beginning of a chunk's file, empty if the file is missing or damaged."""
        try:
            with self._chunk_path(number).open("rb") as file:
                head = json.loads(file.readline())
        except (FileNotFoundError, ValueError):
            return {}
        return head if isinstance(head, dict) else {}

    def _warn_of_other_lines(self, chunk: Chunk, source: str) -> None:
        """Log a warning, once, if the chunk has a file."""
        if self._has_warned or not self._chunk_path(chunk.number).exists():
            return
        self._has_warned = True
        log.warning(
            "%s: the chunk from line %d of %s was made from other lines or has no valid hash: it and others like it "
            "are translated again",
            self.folder,
            chunk.first_line,
            source,
        )

    def _chunk_path(self, number: int) -> Path:
        return self.folder / f"{_CHUNK}{number:06d}"

    def _size_and_time(self) -> list[int] | None:
        """Return size in bytes and modification time in ns of the output file; None if there is none."""
        if not self.output.exists():
            return None
        status = self.output.stat()
        return [status.st_size, status.st_mtime_ns]

    def _write_manifest(self, manifest: Manifest) -> None:
        write_atomically(self.folder / _MANIFEST, json_bytes(asdict(manifest)))

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Raise InputError with the reason and the state of the output if the disk is full or not writable."""
        try:
            yield
        except OSError as error:
            unchanged = "; the existing file is unchanged" if self.output.exists() else ""
            raise InputError(
                f"output={self._name} cannot be written ({error.strerror}){unchanged}{self.resume_hint()}"
            ) from error


@contextmanager
def compressed(file: BinaryIO, name: str) -> Iterator[BinaryIO]:
    """Yield a file that compresses into `file` if the name ends in .gz, .bz2 or .xz, otherwise `file` itself.

    The gzip header holds no time and no name, so equal contents give equal bytes.
    """
    if (compress := _COMPRESSORS.get(Path(name).suffix)) is None:
        yield file
        return
    with compress(file) as packed:
        yield cast(BinaryIO, packed)
