"""Parallel text from public archives (tar), which are downloaded once and checked afterwards.

The SHA-256 of a public archive is not known in advance. It is recorded in `checksums.json`, beside the archive, when
the archive is unpacked for the first time; an archive of the same name must have the same SHA-256 from then on.
Unpacked files get their final names only after the SHA-256 is recorded, so every unpacked file belongs to a recorded
archive.

`ArchivedCorpus` is the corpus that a config names, `ArchivedText` one of its texts, and `fetch` downloads and unpacks.
"""

from __future__ import annotations

import json
import logging
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast
from urllib.parse import urlsplit

from gnmt.data.corpora import Corpus, check_test_names
from gnmt.data.download import download
from gnmt.data.parallel_text import ParallelFiles, ParallelText
from gnmt.errors import InputError, format_count
from gnmt.fileio import FileFingerprint, building_lock, lines_of, replacing, sha256_of, write_atomically

log = logging.getLogger(__name__)

_CHECKSUMS = "checksums.json"
_BLOCK_BYTES = 1 << 20
_SGM_SEGMENT = re.compile(r"<seg\b[^>]*>(.*)</seg>", re.IGNORECASE)
_NUM_NAMES_SHOWN = 20


@dataclass(frozen=True)
class ArchivedPair:
    """Two files of one archive; line N of one translates line N of the other.

    Args:
        url: Address of the tar archive, compressed or not.
        source, target: Names of the files in the archive: text, plain or compressed, or .sgm. The text of each <seg> of
            an .sgm file is a line, with white space folded, as sacreBLEU reads such files.
    """

    url: str
    source: str
    target: str

    def __post_init__(self) -> None:
        if not archive_name(self.url):
            raise InputError(f"{self.url}: the address of an archive must end in the name of a file")


@dataclass(frozen=True, kw_only=True)
class ArchivedCorpus(Corpus):
    """A public corpus in archives, such as those of the WMT shared tasks.

    Args:
        train, dev: Pairs of files, read one after another.
        test: Pairs of files of each test set, by name.
        download_folder, mirror: See ArchivedText.
    """

    train: list[ArchivedPair]
    dev: list[ArchivedPair]
    test: dict[str, list[ArchivedPair]] = field(default_factory=dict)
    download_folder: str = "downloads"
    mirror: str | None = None

    _not_content: ClassVar[tuple[str, ...]] = (
        *Corpus._not_content,
        "source_language",
        "target_language",
        "train",
        "dev",
        "test",
        "download_folder",
        "mirror",
    )

    def __post_init__(self) -> None:
        for key, pairs in (("train", self.train), ("dev", self.dev)):
            if not pairs:
                raise InputError(
                    f"data.{key} names no files of an archive: give url, source and target of at least one pair"
                )
        check_test_names(self.test)
        urls: dict[str, str] = {}
        for pair in self._all_pairs():
            other = urls.setdefault(archive_name(pair.url), pair.url)
            if other != pair.url:
                raise InputError(
                    f"data: {other} and {pair.url} would be the same file in data.download_folder: "
                    "use archives with different names"
                )

    def named_files(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key in ("train", "dev", "test")}

    def training_text(self) -> ParallelText:
        # Dev and test files are unpacked now too, so that each archive is read once.
        fetch(self._all_pairs(), Path(self.download_folder), self.mirror)
        return self._text(self.train)

    def dev_text(self) -> ParallelText:
        return self._text(self.dev)

    def test_texts(self) -> dict[str, ParallelText]:
        return {name: self._text(pairs) for name, pairs in self.test.items() if pairs}

    def _all_pairs(self) -> list[ArchivedPair]:
        return [*self.train, *self.dev, *chain.from_iterable(self.test.values())]

    def _text(self, pairs: list[ArchivedPair]) -> ParallelText:
        return ArchivedText(pairs, self.download_folder, self.mirror)


@dataclass(frozen=True)
class ArchivedText:
    """Parallel text from archives.

    Args:
        pairs: Pairs of files, read one after another.
        download_folder: Folder for the archives and the files unpacked from them.
        mirror: Address of a folder that holds the archives under their own names, used in place of the folders in
            `url`; None downloads from each `url`.
    """

    pairs: list[ArchivedPair]
    download_folder: str
    mirror: str | None = None

    def iterate(self) -> Iterator[tuple[str, str]]:
        """Yield the pairs, after downloading missing archives.

        Raises InputError like ParallelFiles, and for an archive that is damaged, changed or incomplete.
        """
        yield from self.files().iterate()

    def fingerprint(self, known: Mapping[str, FileFingerprint]) -> dict[str, Any]:
        return self.files().fingerprint(known)

    def files(self) -> ParallelFiles:
        """Return the unpacked files; missing ones are downloaded and unpacked."""
        folder = Path(self.download_folder)
        fetch(self.pairs, folder, self.mirror)
        archives = [folder / archive_name(pair.url) for pair in self.pairs]
        return ParallelFiles(
            [str(unpacked(archive, pair.source)) for archive, pair in zip(archives, self.pairs, strict=True)],
            [str(unpacked(archive, pair.target)) for archive, pair in zip(archives, self.pairs, strict=True)],
        )


def archive_name(url: str) -> str:
    """Return the file name at the end of an address."""
    return urlsplit(url).path.rpartition("/")[2]


def unpacked(archive: Path, member: str) -> Path:
    """Return the path of an unpacked file; an .sgm file is unpacked as plain text with the ending .txt."""
    path = archive.parent / archive.name.split(".")[0] / member
    return path.with_name(f"{path.name}.txt") if path.suffix == ".sgm" else path


def fetch(pairs: Iterable[ArchivedPair], folder: Path, mirror: str | None = None) -> None:
    """Download and unpack the files that are missing in `folder`. Several processes may call this at once."""
    members_of: dict[str, list[str]] = {}
    for pair in pairs:
        members_of.setdefault(pair.url, []).extend((pair.source, pair.target))
    for url, members in members_of.items():
        archive = folder / archive_name(url)
        try:
            if not _missing(archive, members):
                continue
            with building_lock(archive):
                if missing := _missing(archive, members):
                    address = url if mirror is None else f"{mirror.rstrip('/')}/{archive.name}"
                    download(address, archive)
                    _check_and_unpack(archive, url, missing)
        except OSError as error:
            raise InputError(f"{archive}: cannot be unpacked: {error.strerror or error}") from error


def _missing(archive: Path, members: Sequence[str]) -> list[str]:
    """Return the members to unpack, without repetitions; all of them if no checksum of the archive is recorded."""
    distinct = list(dict.fromkeys(members))
    if archive.name not in _read_checksums(archive.parent):
        return distinct
    return [member for member in distinct if not unpacked(archive, member).is_file()]


def _check_and_unpack(archive: Path, url: str, members: Sequence[str]) -> None:
    """Unpack the members if the archive has the recorded SHA-256, or record its SHA-256 if none is recorded."""
    found = {"url": url, "bytes": archive.stat().st_size, "sha256": sha256_of(archive)}
    recorded = _read_checksums(archive.parent).get(archive.name)
    if recorded is not None and recorded["sha256"] != found["sha256"]:
        raise InputError(
            f"{archive}: its sha256 is {found['sha256']} ({found['bytes']} bytes), but {recorded['sha256']} "
            f"({recorded['bytes']} bytes) was recorded when it was first unpacked. Remove the archive, and the same "
            f"command downloads it again; if the publisher has replaced it, remove its entry from "
            f"{archive.parent / _CHECKSUMS} too"
        )
    log.info("unpacking %s of %s", format_count(len(members), "file"), archive)
    with _extracted(archive, members):
        if recorded is None:
            _record(archive, found)  # only now, so that the checksum of an unreadable archive is never recorded


def _record(archive: Path, found: Mapping[str, Any]) -> None:
    """Add an archive's url, size and SHA-256 to the recorded ones."""
    with building_lock(archive.parent / _CHECKSUMS):
        checksums = _read_checksums(archive.parent) | {archive.name: found}
        text = json.dumps(dict(sorted(checksums.items())), indent=1) + "\n"
        write_atomically(archive.parent / _CHECKSUMS, text.encode())
    log.info("%s: sha256 %s recorded in %s", archive, found["sha256"], _CHECKSUMS)


def _read_checksums(folder: Path) -> dict[str, dict[str, Any]]:
    """Return url, size and SHA-256 of each recorded archive, by its file name."""
    path = folder / _CHECKSUMS
    try:
        checksums = json.loads(path.read_text(encoding="utf-8"))
        if not all({"bytes", "sha256"} <= entry.keys() for entry in checksums.values()):
            raise ValueError("an entry lacks bytes or sha256")
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path}: not a list of checksums: {error}; correct or remove the file") from error
    return cast(dict[str, dict[str, Any]], checksums)


@contextmanager
def _extracted(archive: Path, members: Sequence[str]) -> Iterator[None]:
    """Extract the members under temporary names, and rename them to their final names if the block succeeds.

    Entries with other names are skipped, so an archive cannot write outside its folder.
    """
    final_names: dict[Path, Path] = {}  # final path by temporary path
    try:
        try:
            _extract(archive, set(members), final_names)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise InputError(
                f"{archive}: not a complete tar archive: {error}; remove it, and the same command downloads it again"
            ) from error
        yield
        for temporary, final in final_names.items():
            temporary.replace(final)
    finally:
        for temporary in final_names:
            temporary.unlink(missing_ok=True)


def _extract(archive: Path, missing: set[str], final_names: dict[Path, Path]) -> None:
    """Write each missing member under a temporary name, and add that name with the final one to `final_names`."""
    seen = []
    with tarfile.open(archive, "r|*") as tar:
        for entry in tar:
            name = entry.name.removeprefix("./")
            seen.append(name)
            if name in missing and (file := tar.extractfile(entry)) is not None:
                final = unpacked(archive, name)
                temporary = final.with_name(f".{final.name}.new")
                _write(cast(BinaryIO, file), temporary, is_sgm=name.endswith(".sgm"))
                final_names[temporary] = final
                missing.remove(name)
            if not missing:
                return
    raise InputError(
        f"{archive}: does not contain {', '.join(sorted(missing))}; it contains "
        + (", ".join(seen[:_NUM_NAMES_SHOWN]) or "nothing")
        + (f" and {len(seen) - _NUM_NAMES_SHOWN} more" if len(seen) > _NUM_NAMES_SHOWN else "")
    )


def _write(file: BinaryIO, path: Path, is_sgm: bool) -> None:
    """Write a member of an archive to `path`; of an .sgm file, only the text of its segments, one per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as out:
        if not is_sgm:
            while data := file.read(_BLOCK_BYTES):
                out.write(data)
            return
        for line in lines_of(file, path.name):
            if segment := _SGM_SEGMENT.search(line):
                out.write(" ".join(segment[1].split()).encode("utf-8") + b"\n")
