"""Parallel text out of public archives (tar), downloaded once and checked ever after.

An archive is public but not ours, so nobody can say beforehand what its sha256 should be. It is recorded when the
archive is first unpacked, in `checksums.json` beside it, and what comes later under that name must be the same bytes.
Files take their names only when that is done, so what lies unpacked is of an archive that is known.
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
from gnmt.errors import InputError, counted
from gnmt.fileio import FileStamp, building_lock, lines_of, replacing, sha256_of, write_atomically

log = logging.getLogger(__name__)

_CHECKSUMS = "checksums.json"
_BLOCK_BYTES = 1 << 20
_SEGMENT = re.compile(r"<seg\b[^>]*>(.*)</seg>", re.IGNORECASE)


@dataclass(frozen=True)
class ArchivedPair:
    """Two files of one archive that translate each other line by line.

    url: of the tar archive, packed or not. source, target: the files' names in the archive; plain text, .gz, or .sgm,
    of which the text of each <seg> is a line, its white space folded, as sacreBLEU reads such files.
    """

    url: str
    source: str
    target: str

    def __post_init__(self) -> None:
        if not archive_name(self.url):
            raise InputError(f"{self.url}: the address of an archive must end in the name of a file")

    @property
    def members(self) -> tuple[str, str]:
        return self.source, self.target


@dataclass(frozen=True)
class ArchivedText:
    """Parallel text from archives, one pair of files after another.

    download_folder: where archives and what is taken out of them stay. mirror: the address of a folder that holds the
    archives under their own names, instead of where each `url` says; null for those.
    """

    pairs: list[ArchivedPair]
    download_folder: str
    mirror: str | None = None

    def iterate(self) -> Iterator[tuple[str, str]]:
        """Downloads what is missing. Raises InputError like ParallelFiles, and for an archive that is not right."""
        yield from self.files().iterate()

    def fingerprint(self, known: Mapping[str, FileStamp]) -> dict[str, Any]:
        return self.files().fingerprint(known)

    def files(self) -> ParallelFiles:
        """The unpacked files, which are fetched where they are missing."""
        fetch(self.pairs, Path(self.download_folder), self.mirror)
        source, target = (
            [str(unpacked(Path(self.download_folder), pair.url, pair.members[side])) for pair in self.pairs]
            for side in (0, 1)
        )
        return ParallelFiles(source, target)


def archive_name(url: str) -> str:
    """The archive's file name, without the folders of its address."""
    return urlsplit(url).path.rpartition("/")[2]


def unpacked(folder: Path, url: str, member: str) -> Path:
    """Where a file of an archive lies when it is unpacked; what was SGML is plain text there."""
    inside = folder / archive_name(url).split(".")[0] / member
    return inside.with_name(f"{inside.name}.txt") if inside.suffix == ".sgm" else inside


def fetch(pairs: Iterable[ArchivedPair], folder: Path, mirror: str | None = None) -> None:
    """Downloads and unpacks what is not there yet; several processes may ask at once."""
    wanted: dict[str, list[str]] = {}
    for pair in pairs:
        wanted.setdefault(pair.url, []).extend(pair.members)
    for url, members in wanted.items():
        archive = folder / archive_name(url)
        try:
            if not _missing(folder, url, members):
                continue
            with building_lock(archive):
                if missing := _missing(folder, url, members):
                    address = url if mirror is None else f"{mirror.rstrip('/')}/{archive.name}"
                    download(address, archive)
                    _check_and_unpack(archive, url, missing)
        except OSError as error:
            raise InputError(f"{archive}: cannot be unpacked: {error.strerror or error}") from error


def _missing(folder: Path, url: str, members: Sequence[str]) -> list[str]:
    """Those that are to be taken out; all where nobody knows which archive the files are of."""
    is_known = archive_name(url) in _read_checksums(folder)
    return [member for member in dict.fromkeys(members) if not (is_known and unpacked(folder, url, member).is_file())]


def _check_and_unpack(archive: Path, url: str, members: Sequence[str]) -> None:
    found = {"url": url, "bytes": archive.stat().st_size, "sha256": sha256_of(archive)}
    recorded = _read_checksums(archive.parent).get(archive.name)
    if recorded is not None and recorded["sha256"] != found["sha256"]:
        raise InputError(
            f"{archive}: its sha256 is {found['sha256']} ({found['bytes']} bytes), but {recorded['sha256']} "
            f"({recorded['bytes']} bytes) was recorded when it first came. Remove it, and the same command fetches it "
            f"again; if the publisher has replaced the file, take its entry out of {archive.parent / _CHECKSUMS} too"
        )
    log.info("unpacking %s of %s", counted(len(members), "file"), archive)
    with _taken_out(archive, url, members):
        if recorded is None:
            _record(archive, found)  # only now: an archive that could be read is what later ones must equal


def _record(archive: Path, found: Mapping[str, Any]) -> None:
    with building_lock(archive.parent / _CHECKSUMS):
        checksums = _read_checksums(archive.parent) | {archive.name: found}
        text = json.dumps(dict(sorted(checksums.items())), indent=1) + "\n"
        write_atomically(archive.parent / _CHECKSUMS, text.encode())
    log.info("%s: sha256 %s recorded in %s", archive, found["sha256"], _CHECKSUMS)


def _read_checksums(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / _CHECKSUMS
    try:
        checksums = json.loads(path.read_text(encoding="utf-8"))
        if not all({"bytes", "sha256"} <= entry.keys() for entry in checksums.values()):
            raise ValueError("an entry lacks bytes or sha256")
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path}: not a list of checksums: {error}; mend or remove it") from error
    return cast(dict[str, dict[str, Any]], checksums)


@contextmanager
def _taken_out(archive: Path, url: str, members: Sequence[str]) -> Iterator[None]:
    """The members lie there under hidden names, which become their own where the block ends well.

    No other name of the archive is ever used.
    """
    names: dict[Path, Path] = {}  # own by hidden
    try:
        try:
            _take_out(names, archive, url, set(members))
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise InputError(f"{archive}: not a whole tar archive: {error}; remove it, and fetch it again") from error
        yield
        for hidden, own in names.items():
            hidden.replace(own)
    finally:
        for hidden in names:
            hidden.unlink(missing_ok=True)


def _take_out(names: dict[Path, Path], archive: Path, url: str, waiting: set[str]) -> None:
    seen = []
    with tarfile.open(archive, "r|*") as tar:
        for entry in tar:
            name = entry.name.removeprefix("./")
            seen.append(name)
            if name in waiting and (file := tar.extractfile(entry)) is not None:
                own = unpacked(archive.parent, url, name)
                hidden = own.with_name(f".{own.name}.new")
                _write(cast(BinaryIO, file), hidden, is_sgm=name.endswith(".sgm"))
                names[hidden] = own
                waiting.remove(name)
            if not waiting:
                return
    raise InputError(
        f"{archive}: holds no {', '.join(sorted(waiting))}; it holds {', '.join(seen[:20]) or 'nothing'}"
        + (f" and {len(seen) - 20} more" if len(seen) > 20 else "")
    )


def _write(file: BinaryIO, path: Path, is_sgm: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as out:
        if not is_sgm:
            while data := file.read(_BLOCK_BYTES):
                out.write(data)
            return
        for line in lines_of(file, path.name):
            if segment := _SEGMENT.search(line):
                out.write(" ".join(segment[1].split()).encode("utf-8") + b"\n")


@dataclass(frozen=True, kw_only=True)
class ArchivedCorpus(Corpus):
    """A public corpus whose files lie in archives, such as those of the WMT shared tasks.

    train, dev: pairs of files, read one after another. test: the same for each named test set. download_folder,
    mirror: see ArchivedText.
    """

    train: list[ArchivedPair]
    dev: list[ArchivedPair]
    test: dict[str, list[ArchivedPair]] = field(default_factory=dict)
    download_folder: str = "downloads"
    mirror: str | None = None

    _not_content: ClassVar[tuple[str, ...]] = (
        *Corpus._not_content,
        *("train", "dev", "test", "download_folder", "mirror"),
    )

    def __post_init__(self) -> None:
        for key, pairs in (("train", self.train), ("dev", self.dev)):
            if not pairs:
                raise InputError(f"data.{key} names no files of an archive")
        check_test_names(self.test)
        urls: dict[str, str] = {}
        for pair in self._all_pairs():
            other = urls.setdefault(archive_name(pair.url), pair.url)
            if other != pair.url:
                raise InputError(f"data: {other} and {pair.url} would be the same file in data.download_folder")

    def location(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key in ("train", "dev", "test")}

    def training_text(self) -> ParallelText:
        # All files of an archive together, so that it is read once.
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
