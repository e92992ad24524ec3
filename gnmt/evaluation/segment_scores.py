"""Scores of segments that another program has computed, such as COMET, read from files.

`read_score_files` reads the files, `scores_of` finds the scores of given translations in them. Two kinds of files are
read:

- the .json file of `comet-score --to_json`: `{"a.txt": [{"src": ..., "mt": ..., "ref": ..., "COMET": 0.8}, ...], ...}`.
  It holds the translations, so scores belong to the system that has the same ones, whatever the file is called.
- text files with one number per line, one file for each system in their order. Line N is the score of translation N.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gnmt.errors import InputError, format_count
from gnmt.evaluation.metrics import METRIC_TITLES
from gnmt.fileio import parse_json, path_list, read_text_lines

COMET = "COMET"
"""The key of the scores in a file of comet-score, and their name by default."""
UNNAMED = "segment score"
"""The name of the scores in text files that are given without a name."""

Given = str | Sequence[str] | Mapping[str, str | Sequence[str]]
"""A path, several paths, or these by the name of the scores."""


@dataclass(frozen=True)
class ScoredText:
    """The scores of one system.

    Args:
        label: The path of the translations, as the scoring program wrote it, or the path of the text file.
        scores: One for each segment.
        translations: Those that were scored, see `normalized`; None for a text file.
    """

    label: str
    scores: list[float]
    translations: list[str] | None = None


@dataclass(frozen=True)
class ScoreFiles:
    """Scores of one name.

    Args:
        name: Name of the scores, such as COMET.
        path: The .json file; empty for text files.
        texts: The systems in the file, or the text files in their order.
    """

    name: str
    path: str
    texts: list[ScoredText]

    @property
    def described(self) -> str:
        """The files, for messages."""
        return self.path or ", ".join(text.label for text in self.texts)


def read_score_files(given: Given | None) -> list[ScoreFiles]:
    """Read score files.

    Args:
        given: Value of the config key `scores`; None for no scores.

    Raises:
        InputError: A file cannot be read, has a value that is not a finite number, or shares its name with another or
            with a metric.
    """
    if given is None:
        return []
    found = []
    if isinstance(given, Mapping):
        for name, paths in given.items():
            found += _read(str(name), path_list(paths))
    else:
        found = _read(None, path_list(given))
    names = [files.name for files in found]
    of_metrics = {title.lower() for title in METRIC_TITLES.values()} | set(METRIC_TITLES)
    if taken := next((name for name in names if name.lower() in of_metrics), None):
        raise InputError(f"scores: {taken} is the name of a metric that gnmt computes: give the scores another name")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(
            f"scores: several files hold scores of the name {twice}: name them, as in scores={{A:a.json,B:b.json}}"
        )
    return found


def _read(name: str | None, paths: Sequence[str]) -> list[ScoreFiles]:
    if not paths:
        raise InputError("scores: the list has no file")
    if all(path.endswith(".json") for path in paths):
        return [ScoreFiles(name or COMET, path, _read_comet(path)) for path in paths]
    if any(path.endswith(".json") for path in paths):
        raise InputError(
            f"scores: found {', '.join(paths)}, allowed are .json files of comet-score, or text files with one number "
            "per line; for both, name them, as in scores={COMET:comet.json,other:[a.txt,b.txt]}"
        )
    return [ScoreFiles(name or UNNAMED, "", [ScoredText(path, _read_numbers(path)) for path in paths])]


def _read_numbers(path: str) -> list[float]:
    """Return the numbers of a text file with one on each line."""
    scores = []
    for number, line in enumerate(read_text_lines(path), start=1):
        try:
            scores.append(finite(line))
        except ValueError:
            raise InputError(
                f"{path}:{number}: found {line[:40]!r}, allowed is a finite number, the score of a segment"
            ) from None
    return scores


def finite(value: Any) -> float:
    """Return a number of a file; raises ValueError unless it is finite."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"found {value!r}, allowed is a finite number")
    return number


def _read_comet(path: str) -> list[ScoredText]:
    """Return the systems in a file of `comet-score --to_json`."""
    try:
        contents = parse_json(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"scores: {path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"scores: {path} is not JSON: {error}") from None
    is_by_system = isinstance(contents, Mapping) and all(isinstance(one, list) for one in contents.values())
    if not is_by_system or not contents:
        raise InputError(
            f'scores: {path} is not what `comet-score --to_json` writes: {{"FILE": [{{"mt": "TRANSLATION", '
            f'"{COMET}": NUMBER}}, ...], ...}}'
        )
    return [
        ScoredText(
            str(label),
            [_checked(path, label, number, segment, COMET) for number, segment in enumerate(segments, start=1)],
            [normalized(_checked(path, label, number, segment, "mt")) for number, segment in enumerate(segments, 1)],
        )
        for label, segments in contents.items()
    ]


def _checked(path: str, label: str, number: int, segment: Any, key: str) -> Any:
    """Return the score or the translation (key mt) of a segment in a file of comet-score."""
    if isinstance(segment, Mapping) and key not in segment:
        raise InputError(f"scores: {path}: segment {number} of {label} has no {key}, only {', '.join(segment)}")
    value = segment.get(key) if isinstance(segment, Mapping) else None
    if key == "mt":
        is_right, allowed = isinstance(value, str), "text"
    else:
        is_right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        allowed = "a finite number"
    if not is_right:
        raise InputError(f"scores: {path}: {key} of segment {number} of {label} is {value!r}, allowed is {allowed}")
    return value


def normalized(text: str) -> str:
    """Return the text with a space for each run of white space, as evaluate.py's table has it."""
    return " ".join(text.split())


def scores_of(files: ScoreFiles, systems: Mapping[str, Sequence[str]]) -> list[list[float]]:
    """Return the scores of each system, in their order.

    Args:
        files: Result of `read_score_files`.
        systems: The translations of each system by its name.

    Raises:
        InputError: A system has no scores, or another number of them than translations.
    """
    if not files.path and len(files.texts) != len(systems):
        raise InputError(
            f"scores: {format_count(len(files.texts), 'file')} ({files.described}) for "
            f"{format_count(len(systems), 'system')}: give one file for each system, in the order of the systems"
        )
    found = []
    for index, (name, translations) in enumerate(systems.items()):
        text = matching(files, translations) if files.path else files.texts[index]
        if text is None:
            held = [f"{one.label} ({format_count(len(one.scores), 'segment')})" for one in files.texts]
            raise InputError(
                f"scores: {files.path} has no scores of {name}: it holds those of {', '.join(held) or 'no system'}, "
                f"and none has the {format_count(len(translations), 'translation')} of {name}; run comet-score on "
                "these, one per line"
            )
        check_number(text, name, len(translations))
        found.append(text.scores)
    return found


def matching(files: ScoreFiles, translations: Sequence[str]) -> ScoredText | None:
    """Return the scores of the same translations in a file of comet-score, None if it has none."""
    texts = [normalized(text) for text in translations]
    return next((one for one in files.texts if one.translations == texts), None)


def check_number(text: ScoredText, name: str, num_translations: int) -> None:
    """Raise InputError if a text file has another number of scores than `name` has translations."""
    if len(text.scores) != num_translations:
        raise InputError(
            f"scores: {text.label} has {format_count(len(text.scores), 'line')} and {name} has "
            f"{format_count(num_translations, 'translation')}: line N is the score of translation N"
        )
