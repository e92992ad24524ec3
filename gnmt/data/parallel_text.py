"""Parallel text from files: two text files, TSV or JSONL."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any, Protocol

from gnmt.errors import InputError, counted
from gnmt.fileio import FileStamp, check_files, read_text_lines, stamp_file


class ParallelText(Protocol):
    """Sentence pairs that can be read again and again, always the same."""

    def iterate(self) -> Iterator[tuple[str, str]]:
        """Source and target of each pair, in order."""
        ...

    def fingerprint(self, known: Mapping[str, FileStamp]) -> dict[str, Any]:
        """What the pairs were made of, as JSON values: of equal settings and equal fingerprint come equal pairs.

        known: stamps of files by path; a file whose size and time agree with its stamp is not hashed again.
        """
        ...


class MissingColumnError(InputError):
    """A line of JSONL lacks a key that `columns` names; what: the message without that advice."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"{what}; columns names the two to read")


@contextmanager
def naming_columns(key: str) -> Iterator[None]:
    """Around the reading of the text at that key of the config: what is said of its columns gives the whole key."""
    try:
        yield
    except MissingColumnError as error:
        raise InputError(f"{error.what}; {key}.columns names the two to read") from error


@dataclass(frozen=True)
class ParallelFiles:
    """Parallel text in files: either `source` and `target`, or `pairs`; nothing at all means no text.

    source, target: plain text, one sentence a line, line N translates line N; lists are read one after
    another, file N of one beside file N of the other. pairs: .tsv (source and target are the first two
    columns, further ones are ignored) or .jsonl (one object a line, whose keys `columns` names; a line
    break inside a value becomes a space). Each name may end in .gz as well.
    """

    source: str | list[str] | None = None
    target: str | list[str] | None = None
    pairs: str | list[str] | None = None
    columns: list[str] = field(default_factory=lambda: ["source", "target"])

    def __post_init__(self) -> None:
        sources, targets, pairs = _listed(self.source), _listed(self.target), _listed(self.pairs)
        if pairs and (sources or targets):
            raise InputError("give either source and target, or pairs, not both")
        if len(sources) != len(targets):
            raise InputError(
                f"source names {_files(sources)} and target names {_files(targets)}; "
                "each file of one needs its file of the other"
            )
        for path in pairs:
            _format(path)
        if len(self.columns) != 2 or self.columns[0] == self.columns[1]:
            raise InputError(f"columns must be two different keys, found {list(self.columns)}")

    @property
    def given(self) -> bool:
        """Whether any file is named."""
        return bool(_listed(self.source) or _listed(self.pairs))

    @property
    def _paths(self) -> list[str]:
        return [*_listed(self.source), *_listed(self.target), *_listed(self.pairs)]

    def iterate(self) -> Iterator[tuple[str, str]]:
        """Raises InputError for missing files, unequal numbers of lines (at the end), and a bad line."""
        check_files(self._paths)
        for source, target in zip(_listed(self.source), _listed(self.target), strict=True):
            yield from _two_files(source, target)
        for path in _listed(self.pairs):
            yield from _tsv(path) if _format(path) == "tsv" else _jsonl(path, self.columns)

    def fingerprint(self, known: Mapping[str, FileStamp]) -> dict[str, Any]:
        check_files(self._paths)
        files: list[dict[str, Any]] = []
        for role in ("source", "target", "pairs"):
            for path in _listed(getattr(self, role)):
                columns = list(self.columns) if role == "pairs" and _format(path) == "jsonl" else None
                files.append({"role": role, "columns": columns, **asdict(stamp_file(path, known))})
        return {"files": files}


def _listed(paths: str | list[str] | None) -> list[str]:
    return [] if paths is None else [paths] if isinstance(paths, str) else list(paths)


def _files(paths: list[str]) -> str:
    return f"{counted(len(paths), 'file')} ({', '.join(paths)})" if paths else "none"


def _format(path: str) -> str:
    for ending in ("tsv", "jsonl"):
        if path.removesuffix(".gz").endswith(f".{ending}"):
            return ending
    raise InputError(f"pairs must end in .tsv, .jsonl, .tsv.gz or .jsonl.gz, found {path}")


def _two_files(source: str, target: str) -> Iterator[tuple[str, str]]:
    num_source = num_target = 0
    for left, right in zip_longest(read_text_lines(source), read_text_lines(target)):
        # Counting goes on to the end of the longer file, so that the message can show both counts.
        num_source += left is not None
        num_target += right is not None
        if left is not None and right is not None:
            yield left, right
    if num_source != num_target:
        raise InputError(
            f"{source} has {counted(num_source, 'line')} and {target} has {num_target}: "
            "line N of one must be the translation of line N of the other"
        )


def _tsv(path: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(read_text_lines(path), start=1):
        columns = line.split("\t")
        if len(columns) < 2:
            if not line.strip():
                raise InputError(f"{path}:{number}: a blank line, where source, tab, target is needed; remove it")
            raise InputError(f"{path}:{number}: no tab; a line must be source, tab, target: {line[:80]!r}")
        yield columns[0], columns[1]


def _jsonl(path: str, columns: list[str]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(read_text_lines(path), start=1):
        if not line.strip():
            raise InputError(f"{path}:{number}: a blank line, where a JSON object is needed; remove it")
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:  # whose own words count lines within the line
            raise InputError(f"{path}:{number}: not a JSON object: {error.msg}, at character {error.colno}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: not a JSON object: {error}") from error
        if not isinstance(record, dict):
            raise InputError(f"{path}:{number}: not a JSON object but {type(record).__name__}")
        source, target = (_json_text(record, column, f"{path}:{number}") for column in columns)
        yield source, target


def _json_text(record: dict[str, Any], column: str, place: str) -> str:
    if column not in record:
        keys = ", ".join(map(repr, record)) or "none"
        raise MissingColumnError(f"{place}: no key {column!r}; the keys are {keys}")
    value = record[column]
    if not isinstance(value, str):
        raise InputError(f"{place}: the value of {column!r} must be a string, found {type(value).__name__}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(f"{place}: the value of {column!r} holds half a surrogate pair (\\ud800 to \\udfff)")
    return value.replace("\r\n", " ").replace("\n", " ")
