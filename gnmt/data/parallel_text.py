"""Parallel text from files: two text files, TSV or JSONL.

`ParallelText` is the interface of everything that yields sentence pairs; `ParallelFiles` reads them from files. The
functions below it read one file, or one pair of files, of each format.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

from gnmt.errors import InputError, flatten, format_count
from gnmt.fileio import (
    COMPRESSED_SUFFIXES,
    FileFingerprint,
    check_files,
    fingerprint_file,
    read_text_lines,
    uncompressed_name,
)

log = logging.getLogger(__name__)

_HEADING = re.compile(r"source|target|src|tgt|trg|[a-z]{2}([-_][A-Za-z]{2,4})?", re.IGNORECASE)
"""A name or a language code in the heading of a table, such as `source`, `en` or `pt-BR`."""


class ParallelText(Protocol):
    """Sentence pairs that can be read any number of times, always in the same order."""

    def iterate(self) -> Iterator[tuple[str, str]]:
        """Yield source and target of each pair."""
        ...

    def fingerprint(self, known: Mapping[str, FileFingerprint]) -> dict[str, Any]:
        """Return JSON values that identify the pairs: equal settings and equal fingerprints mean equal pairs.

        Args:
            known: Fingerprints of files by path. A file whose size and time have not changed is not hashed again.
        """
        ...


@dataclass(frozen=True)
class ParallelFiles:
    """Parallel text in files: either `source` and `target`, or `pairs`; no file at all means no text.

    Every file may be compressed; its name then ends in .gz, .bz2 or .xz.

    Args:
        source, target: Plain text with one sentence per line; line N of `target` translates line N of `source`. Lists
            are read in order: the N-th target file translates the N-th source file.
        pairs: Files that contain both sides. A .tsv file has source and target in the first two columns; further
            columns are ignored. A .jsonl file has one object per line; a line break in a value becomes a space.
        columns: The keys of source and target in .jsonl files; `translation.en` is the key en of the object at the key
            translation.
    """

    source: str | list[str] | None = None
    target: str | list[str] | None = None
    pairs: str | list[str] | None = None
    columns: list[str] = field(default_factory=lambda: ["source", "target"])

    def __post_init__(self) -> None:
        sources, targets, pairs = _listed(self.source), _listed(self.target), _listed(self.pairs)
        if pairs and (sources or targets):
            raise InputError(
                "source or target is given together with pairs: give either source and target, or pairs, not both"
            )
        if len(sources) != len(targets):
            raise InputError(
                f"source names {_described(sources)} and target names {_described(targets)}: give one target file for "
                "each source file"
            )
        for path in pairs:
            if _format(path) is None:
                endings = f"perhaps with {', '.join(COMPRESSED_SUFFIXES)} after it"
                raise InputError(f"pairs must end in .tsv or .jsonl, {endings}, found {path}")
        for side, paths in (("source", sources), ("target", targets)):
            for path in paths:
                check_plain_text(path, side, "give it as pairs=, which reads both sides of each line")
        if len(self.columns) != 2 or self.columns[0] == self.columns[1]:
            raise InputError(f"columns must be two different keys, found {list(self.columns)}")

    @property
    def given(self) -> bool:
        """True if any file is named."""
        return bool(_listed(self.source) or _listed(self.pairs))

    def iterate(self) -> Iterator[tuple[str, str]]:
        """Yield the pairs.

        Raises InputError for missing files, for a malformed line, and, at the end of the files, for unequal numbers of
        lines.
        """
        self._check()
        for source, target in zip(_listed(self.source), _listed(self.target), strict=True):
            yield from _read_two_files(source, target)
        for path in _listed(self.pairs):
            yield from _read_tsv(path) if _format(path) == "tsv" else _read_jsonl(path, self.columns)

    def fingerprint(self, known: Mapping[str, FileFingerprint]) -> dict[str, Any]:
        """Return {"files": [...]} with role, columns and fingerprint of each file."""
        self._check()
        files: list[dict[str, Any]] = []
        for role in ("source", "target", "pairs"):
            for path in _listed(getattr(self, role)):
                columns = list(self.columns) if role == "pairs" and _format(path) == "jsonl" else None
                files.append({"role": role, "columns": columns, **asdict(fingerprint_file(path, known))})
        return {"files": files}

    def _check(self) -> None:
        check_files([*_listed(self.source), *_listed(self.target), *_listed(self.pairs)])


class MissingColumnError(InputError):
    """A line of JSONL lacks a key that `columns` names.

    Args:
        problem: The message without the advice about `columns`.
    """

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(f"{problem}; set columns to the keys of source and target")


@contextmanager
def naming_columns(key: str) -> Iterator[None]:
    """Replace a MissingColumnError of the block by an InputError that names `<key>.columns` of the config."""
    try:
        yield
    except MissingColumnError as error:
        raise InputError(f"{error.problem}; set {key}.columns to the keys of source and target") from error


def _listed(paths: str | list[str] | None) -> list[str]:
    return [] if paths is None else [paths] if isinstance(paths, str) else list(paths)


def _described(paths: list[str]) -> str:
    return f"{format_count(len(paths), 'file')} ({', '.join(paths)})" if paths else "none"


def _format(path: str) -> str | None:
    """Return "tsv" or "jsonl" by the end of the name, None for other names."""
    suffix = Path(uncompressed_name(path)).suffix
    return suffix.removeprefix(".") if suffix in (".tsv", ".jsonl") else None


def check_plain_text(path: str, key: str, advice: str) -> None:
    """Raise InputError if the name of a file says that its lines are not sentences.

    Args:
        path: The path.
        key: The key that names it, for the message.
        advice: What to do instead.
    """
    if (kind := _format(path)) is not None:
        raise InputError(f"{key}={path} is a file of {kind.upper()}, but {key} takes one sentence per line: {advice}")


def _read_two_files(source_path: str, target_path: str) -> Iterator[tuple[str, str]]:
    num_source = num_target = 0
    for source, target in zip_longest(read_text_lines(source_path), read_text_lines(target_path)):
        # Read the longer file to its end, so that the message can show both counts.
        num_source += source is not None
        num_target += target is not None
        if source is not None and target is not None:
            yield source, target
    if num_source != num_target:
        raise InputError(
            f"{source_path} has {format_count(num_source, 'line')} and {target_path} has {num_target}: "
            "line N of one must be the translation of line N of the other"
        )


def _read_tsv(path: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(read_text_lines(path), start=1):
        columns = line.split("\t")
        if len(columns) < 2:
            if not line.strip():
                raise InputError(f"{path}:{number}: a blank line, where source, tab, target is needed; remove it")
            raise InputError(f"{path}:{number}: no tab; a line must be source, tab, target: {line[:80]!r}")
        if number == 1:
            _tell_of_columns(path, columns[0].strip(), columns[1].strip(), len(columns))
        yield columns[0], columns[1]


@cache
def _tell_of_columns(path: str, source: str, target: str, num_columns: int) -> None:
    """Log a heading and further columns, once although a file is read several times."""
    if _HEADING.fullmatch(source) and _HEADING.fullmatch(target):
        log.warning(
            "%s:1: %r and %r look like a heading, but the line is read as a pair of sentences: remove it, as with "
            "tail -n +2, if it is one",
            path,
            source,
            target,
        )
    if num_columns > 2:
        log.info("%s:1: %d columns; source and target are the first two, the others are ignored", path, num_columns)


def _read_jsonl(path: str, columns: list[str]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(read_text_lines(path), start=1):
        if not line.strip():
            raise InputError(f"{path}:{number}: a blank line, where a JSON object is needed; remove it")
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:  # its full message has a misleading line number
            raise InputError(f"{path}:{number}: not a JSON object: {error.msg}, at character {error.colno}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: not a JSON object: {error}") from error
        if not isinstance(record, dict):
            raise InputError(f"{path}:{number}: not a JSON object but {type(record).__name__}")
        source, target = (_json_text(record, column, f"{path}:{number}") for column in columns)
        yield source, target


def _json_text(record: dict[str, Any], column: str, location: str) -> str:
    value: Any = record
    for key in [column] if column in record else column.split("."):
        if not isinstance(value, dict) or key not in value:
            keys = ", ".join(map(repr, flatten(record))) or "none"
            raise MissingColumnError(f"{location}: no key {column!r}; the keys are {keys}")
        value = value[key]
    if not isinstance(value, str):
        raise InputError(f"{location}: the value of {column!r} must be a string, found {type(value).__name__}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(f"{location}: the value of {column!r} contains half a surrogate pair (\\ud800 to \\udfff)")
    return value.replace("\r\n", " ").replace("\n", " ")
