"""The figures that evaluate.py has written into a run's folder, checked, since people move and mend such files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Evaluated:
    """What evaluate.py wrote: scores in percent and signatures by metric, and a row for each range of lengths.

    sentences_per_second: of translating; None where it was not yet written down.
    """

    scores: dict[str, float]
    signatures: dict[str, str]
    by_length: list[dict[str, Any]]
    sentences_per_second: float | None = None


def read_evaluations(folder: Path, best_step: int | None, problems: list[str]) -> dict[str, Evaluated]:
    """The figures by the names of their files. Appends to problems what is none, and what is of another best.pt.

    best_step: update of the run's best.pt; None where it has none that can be read.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            figures = json.loads(path.read_bytes())
            evaluated = _evaluated(figures)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            problems.append(f"{path} is no result of evaluate.py ({_in_words(error)})")
            continue
        step = figures.get("step", best_step)  # the oldest files lack it
        if is_of_best(path) and best_step is not None and step != best_step:
            problems.append(
                f"{path} is left out: it measured the best.pt of update {step}, which is now that of update "
                f"{best_step}: run evaluate.py on it again"
            )
            continue
        found[path.stem] = evaluated
    return found


def is_of_best(path: Path) -> bool:
    """Whether a file's name, `<test set>.<checkpoint><variant>.json`, says that best.pt alone was measured."""
    return "best" in path.stem.split(".")[1:]


def _evaluated(figures: Any) -> Evaluated:
    """Raises KeyError for what is missing, and ValueError for what is of the wrong kind, by its key."""
    figures = _checked(figures, Mapping, "the file")
    signatures = _checked(figures["signatures"], Mapping, "signatures")
    rows = _checked(figures.get("by_length", []), list, "by_length")
    return Evaluated(
        {metric: _number(figures[metric], metric) for metric in ("bleu", "chrf")},
        {str(metric): _checked(signature, str, f"signatures.{metric}") for metric, signature in signatures.items()},
        [_row(row, f"by_length[{number}]") for number, row in enumerate(rows)],
        _number(figures["sentences_per_second"], "sentences_per_second") if "sentences_per_second" in figures else None,
    )


def _row(row: Any, place: str) -> dict[str, Any]:
    """A range of lengths: from_words, to_words (None for any more), num_sentences, bleu."""
    row = _checked(row, Mapping, place)
    to_words = row["to_words"]
    return {
        "from_words": _checked(row["from_words"], int, f"{place}.from_words"),
        "to_words": None if to_words is None else _checked(to_words, int, f"{place}.to_words"),
        "num_sentences": _checked(row["num_sentences"], int, f"{place}.num_sentences"),
        "bleu": _number(row["bleu"], f"{place}.bleu"),
    }


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} is {value!r}, allowed is a finite number")
    return float(value)


def _checked(value: Any, kind: type, key: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        allowed = {Mapping: "an object", list: "a list", str: "text", int: "a whole number"}[kind]
        raise ValueError(f"{key} is {str(value)[:40]!r}, allowed is {allowed}")
    return value


def _in_words(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return f"it lacks {error.args[0]}" if isinstance(error, KeyError) else str(error)
