"""Scoring files of translations: line by line, in constant memory."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from types import MappingProxyType
from typing import Any, BinaryIO, Literal, NamedTuple

from gnmt.data.parallel_text import ParallelFiles
from gnmt.decoding.options import SCORING_OPTIONS, SearchOptions
from gnmt.decoding.scoring import PairScore
from gnmt.decoding.translation import Translation
from gnmt.decoding.translator import Translator
from gnmt.errors import InputError, counted
from gnmt.fileio import read_lines
from gnmt.logs import progress_bar
from gnmt.translation.formats import Origin
from gnmt.translation.translate_files import STANDARD_STREAM, Job, check_places, opened_for_writing

log = logging.getLogger(__name__)

_TSV_COLUMNS = ("line", "rank", "log_prob", "score", "num_tokens")


class Entry(NamedTuple):
    """A translation to be scored: its line, counted from 1, its rank in an n-best list, and what it is.

    scoring: fields of SearchOptions that its score depended on when it was made; empty where nothing says so.
    made_with: what its line says of precision and checkpoints, unchecked; None for what no search made.
    """

    line: int
    rank: int
    source: str
    target: str | Translation
    scoring: Mapping[str, float] = MappingProxyType({})
    made_with: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Scorable:
    """What is scored: two files of text, or one that translate.py wrote with format=jsonl, whose ids are taken.

    Raises InputError where neither or both are given.
    """

    source: str | None = None
    target: str | None = None
    translations: str | None = None

    def __post_init__(self) -> None:
        if (self.source is None) != (self.target is None):
            raise InputError("source= and target= belong together: give both files, or input=")
        if (self.source is None) == (self.translations is None):
            raise InputError(
                "what is to be scored: give source= and target=, two files of text, or input=, a file that "
                "translate.py wrote with format=jsonl; one of the two"
            )
        for path in self.paths:
            if path == STANDARD_STREAM:
                raise InputError("scoring reads files: give names in place of -")

    @property
    def paths(self) -> list[str]:
        return [path for path in (self.source, self.target, self.translations) if path is not None]

    def entries(self) -> Iterator[Entry]:
        """In the order of the lines. Raises InputError with path:line for what cannot be read."""
        if self.translations is not None:
            yield from _translations(self.translations)
        else:
            pairs = ParallelFiles(self.source, self.target).iterate()
            yield from (Entry(line, 1, source, target) for line, (source, target) in enumerate(pairs, start=1))


def _translations(path: str) -> Iterator[Entry]:
    for number, text in enumerate(read_lines(path), start=1):
        try:
            record = json.loads(text)
            source, translations = record["source"], record["translations"]
            targets = [(translation["tokens"], translation.get("segment_lengths", [])) for translation in translations]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{path}:{number}: not a line that translate.py writes with format=jsonl "
                f"({type(error).__name__}: {error}); the keys source and translations[].tokens are needed"
            ) from None
        if not isinstance(source, str) or not all(_is_ids(ids) for target in targets for ids in target):
            raise InputError(f"{path}:{number}: source must be text and tokens a list of whole numbers")
        scoring = _scoring(record.get("scoring", {}), f"{path}:{number}")
        made_with = {key: record[key] for key in Origin._fields if key in record}
        for rank, (tokens, segment_lengths) in enumerate(targets, start=1):
            translation = Translation("", 0.0, tuple(tokens), segment_lengths=tuple(segment_lengths))
            yield Entry(number, rank, source, translation, scoring, made_with)


def _scoring(value: Any, place: str) -> Mapping[str, float]:
    """The options of equation 14 that a line names, checked."""
    if not isinstance(value, dict) or value.keys() - set(SCORING_OPTIONS):
        raise InputError(f"{place}: scoring is {json.dumps(value)}; it holds numbers for {', '.join(SCORING_OPTIONS)}")
    try:
        SearchOptions(**value)
    except InputError as error:
        raise InputError(f"{place}: scoring is wrong: {error}") from None
    return value


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


@dataclass
class Totals:
    """Over all that was scored. num_tokens: target tokens, EOS counted."""

    num_translations: int = 0
    num_tokens: int = 0
    log_prob: float = 0.0

    def add(self, score: PairScore) -> None:
        self.num_translations += 1
        self.num_tokens += len(score.tokens)
        self.log_prob += score.log_prob

    def summary(self) -> str:
        """The totals in a line."""
        translations = counted(self.num_translations, "translation")
        if not self.num_tokens:
            return f"{translations} without tokens"
        mean = self.log_prob / self.num_tokens
        perplexity = math.exp(-mean) if mean > -700 else math.inf
        return (
            f"{translations}, {counted(self.num_tokens, 'token')}, mean log-probability of a token "
            f"{mean:.4f}, perplexity {perplexity:.3f}"
        )


def score_files(
    translator: Translator,
    scorable: Scorable,
    output: str,
    kind: Literal["jsonl", "tsv"],
    given: Collection[str] = (),
    checkpoints: Sequence[str] = (),
) -> Totals:
    """Writes a line for each translation, in order, to a file, which appears when it is complete, or to stdout for "-".

    jsonl: {"line", "rank", "log_prob", "score", "tokens" (ids), "token_log_probs"}. tsv: a heading, then line, rank,
    log_prob, score, num_tokens. Each is scored with the options of equation 14 that its line names, so that its score
    is that of the search, and the translator's where it names none. given: the translator's options that stand against
    what lines say, since somebody asked for them. Raises InputError for what cannot be read or written.
    """
    check_places_of(scorable, output)
    totals = Totals()
    own = Origin(translator.precision.name, tuple(checkpoints))
    entries = with_origins_compared(scorable.entries(), scorable.paths[0], own)
    bar = progress_bar(description="scoring", unit="line")
    with opened_for_writing(Job(scorable.paths[0], output)) as out, bar:
        if kind == "tsv":
            out.write(("\t".join(_TSV_COLUMNS) + "\n").encode())
        while window := list(islice(entries, translator.chunk_lines)):
            for scoring, entries_of_one in groupby(window, key=lambda entry: entry.scoring):
                options = {name: value for name, value in scoring.items() if name not in given}
                _score_entries(translator, list(entries_of_one), scorable.paths[0], options, out, kind, totals)
            bar.update(len(window))
    log.info(totals.summary())
    return totals


def check_places_of(scorable: Scorable, output: str, checkpoints: Sequence[str] = ()) -> None:
    """Finds what cannot work before the model is asked for anything; checkpoints: files that are read as well."""
    for path in scorable.paths:
        check_places(Job(path, output), None, checkpoints)


def with_origins_compared(entries: Iterable[Entry], path: str, own: Origin) -> Iterator[Entry]:
    """The entries as they are, with one warning where the first one comes that was not made as scores are now."""
    warned = False
    for entry in entries:
        if not warned and entry.made_with is not None and (differences := _differences(entry.made_with, own)):
            warned = True
            log.warning(
                "%s:%d: %s: scores may differ from those that search reported, here and in further lines",
                *(path, entry.line, "; ".join(differences)),
            )
        yield entry


def _differences(made_with: Mapping[str, Any], own: Origin) -> list[str]:
    """What a line says otherwise than it is here; checkpoints in any order are the same models."""
    differences = []
    for key, value in own._asdict().items():
        value = sorted(value) if isinstance(value, tuple) else value
        found = made_with.get(key)
        if key not in made_with:
            differences.append(f"the line does not say its {key}")
        elif (sorted(found, key=str) if isinstance(found, list) else found) != value:
            differences.append(f"{key} is {json.dumps(found)} there and {json.dumps(value)} here")
    return differences


def _score_entries(
    translator: Translator,
    entries: Sequence[Entry],
    path: str,
    options: Mapping[str, float],
    out: BinaryIO,
    kind: Literal["jsonl", "tsv"],
    totals: Totals,
) -> None:
    pairs = [(entry.source, entry.target) for entry in entries]
    lines = [entry.line for entry in entries]
    for entry, score in zip(entries, translator.score(pairs, line_numbers=lines, path=path, **options), strict=True):
        totals.add(score)
        out.write((_as_json(entry, score) if kind == "jsonl" else _as_tsv(entry, score)).encode() + b"\n")


def _as_json(entry: Entry, score: PairScore) -> str:
    return json.dumps(
        {
            "line": entry.line,
            "rank": entry.rank,
            "log_prob": score.log_prob,
            "score": score.score,
            "tokens": list(score.tokens),
            "token_log_probs": list(score.token_log_probs),
        }
    )


def _as_tsv(entry: Entry, score: PairScore) -> str:
    numbers = (f"{score.log_prob:.6f}", f"{score.score:.6f}")
    return "\t".join([str(entry.line), str(entry.rank), *numbers, str(len(score.tokens))])
