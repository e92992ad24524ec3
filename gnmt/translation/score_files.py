"""Force-decoding scores of files of translations, line by line, in constant memory.

`score_files` reads entries (a source and one of its translations) from two text files, from a file of pairs, or from
one that translate.py wrote with format=jsonl, and writes one line of scores for each.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from types import MappingProxyType
from typing import Any, NamedTuple

from gnmt.data.parallel_text import ParallelFiles
from gnmt.data.tokenizer import Tokenizers
from gnmt.decoding.alignment import words_of_target
from gnmt.decoding.options import SCORING_OPTIONS, SearchOptions
from gnmt.decoding.scoring import PairScore
from gnmt.decoding.segments import Translation
from gnmt.decoding.translator import Translator
from gnmt.errors import InputError, format_count
from gnmt.fileio import read_lines
from gnmt.logs import progress_bar
from gnmt.translation.formats import Origin, OutputFormat
from gnmt.translation.jobs import STANDARD_STREAM, Job, check_job, check_job_output, open_output

log = logging.getLogger(__name__)

_TSV_COLUMNS = ("line", "rank", "log_prob", "score", "num_tokens")


def score_files(
    translator: Translator,
    scorable: Scorable,
    output: str,
    format: OutputFormat,
    overridden: Collection[str] = (),
    checkpoints: Sequence[str] = (),
) -> Totals:
    """Write a line of scores for each translation, in order, and return the totals.

    jsonl: {"line", "rank", "log_prob", "score", "tokens" (ids), "token_log_probs", "source", "target" (texts),
    "word_log_probs" (for each word of the target, the sum over its tokens)}. tsv: a heading, then the columns line,
    rank, log_prob, score, num_tokens. On request both have "alignment", and jsonl has "word_attention"; see
    OutputFormat.

    A line that records its options of equation 14 (Wu et al. 2016) is scored with them, and the score then equals that
    of the search. Other lines are scored with the translator's options.

    Args:
        translator: The model.
        scorable: The translations to score. Call its `check_output` first: this function does not check the paths.
        output: Path of a file, which appears when it is complete, or `-` for standard output.
        format: jsonl or tsv.
        overridden: Names of options for which the translator's value replaces the recorded one.
        checkpoints: The first digits of each checkpoint's sha256.

    Raises:
        InputError: If an input cannot be read or the output cannot be written.
    """
    path = scorable.paths[0]
    totals = Totals()
    own_origin = Origin(translator.precision.name, tuple(checkpoints))
    entries = _warn_of_other_origin(scorable.entries(), path, own_origin)
    with open_output(output) as out, progress_bar(description="scoring", unit="line") as bar:
        if format.kind == "tsv":
            columns = [*_TSV_COLUMNS, "alignment"] if format.alignments else _TSV_COLUMNS
            out.write(("\t".join(columns) + "\n").encode())
        while chunk := list(islice(entries, translator.chunk_lines)):
            for scoring, group in groupby(chunk, key=lambda entry: entry.scoring):
                options = {name: value for name, value in scoring.items() if name not in overridden}
                group_entries = list(group)
                pairs = [(entry.source, entry.target) for entry in group_entries]
                lines = [entry.line for entry in group_entries]
                scores = translator.score(pairs, line_numbers=lines, path=path, attention=format.attention, **options)
                for entry, score in zip(group_entries, scores, strict=True):
                    totals.add(score)
                    out.write(_formatted(entry, score, translator.tokenizers, format).encode() + b"\n")
            bar.update(len(chunk))
    log.info(totals.summary())
    return totals


@dataclass
class Totals:
    """Sums over all scored translations; `num_tokens` counts target tokens with EOS, `log_prob` is in nats."""

    num_translations: int = 0
    num_tokens: int = 0
    log_prob: float = 0.0

    def add(self, score: PairScore) -> None:
        """Add one translation."""
        self.num_translations += 1
        self.num_tokens += len(score.tokens)
        self.log_prob += score.log_prob

    def summary(self) -> str:
        """Return the totals in one line."""
        translations = format_count(self.num_translations, "translation")
        if not self.num_tokens:
            return f"{translations} without tokens"
        mean = self.log_prob / self.num_tokens
        perplexity = math.exp(-mean) if mean > -700 else math.inf
        return (
            f"{translations}, {format_count(self.num_tokens, 'token')}, mean log-probability of a token "
            f"{mean:.4f}, perplexity {perplexity:.3f}"
        )


# Reading


class Entry(NamedTuple):
    """A translation to be scored.

    Args:
        line: Its line number in the input, from 1.
        rank: Its rank in an n-best list, from 1.
        source: The source text.
        target: The target text, or a Translation with token ids.
        scoring: Options of equation 14 that its score was made with; empty if unknown.
        made_with: Precision and checkpoints that its line records, unchecked; None for plain text.
    """

    line: int
    rank: int
    source: str
    target: str | Translation
    scoring: Mapping[str, float] = MappingProxyType({})
    made_with: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Scorable:
    """Translations to be scored: two text files, a file of pairs, or one of translate.py, whose token ids are scored.

    Raises InputError unless either both text files, `pairs` or `translations` are given.

    Args:
        source: Path of a text file.
        target: Path of a text file; line N translates line N of the source.
        translations: Path of a file that translate.py wrote with format=jsonl.
        pairs: Path of a .tsv or .jsonl file.
        columns: The keys of source and target in a .jsonl file.
    """

    source: str | None = None
    target: str | None = None
    translations: str | None = None
    pairs: str | None = None
    columns: Sequence[str] = ("source", "target")

    def __post_init__(self) -> None:
        if (self.source is None) != (self.target is None):
            raise InputError("source= and target= belong together: give both files, or pairs=, or input=")
        if sum(path is not None for path in (self.source, self.pairs, self.translations)) != 1:
            raise InputError(
                "give either source= and target=, two files of text, or pairs=, a .tsv or .jsonl file, or input=, a "
                "file that translate.py wrote with format=jsonl"
            )
        self._text()
        for path in self.paths:
            if path == STANDARD_STREAM:
                raise InputError("score.py reads files, found -: give the name of a file")

    @property
    def paths(self) -> list[str]:
        """The paths of all files that are given."""
        return [path for path in (self.source, self.target, self.pairs, self.translations) if path is not None]

    def check_output(self, output: str, checkpoints: Sequence[str] = ()) -> None:
        """Raise InputError if a file is missing or is also the output, or if the output cannot be written."""
        for path in self.paths:
            check_job(Job(path, output), checkpoints)
        check_job_output(output)

    def entries(self) -> Iterator[Entry]:
        """Yield the entries in order; raises InputError with `path:line` for a line that cannot be read."""
        if self.translations is not None:
            yield from _read_translations(self.translations)
        else:
            pairs = enumerate(self._text().iterate(), start=1)
            yield from (Entry(line, 1, source, target) for line, (source, target) in pairs)

    def _text(self) -> ParallelFiles:
        return ParallelFiles(self.source, self.target, self.pairs, list(self.columns))


def _read_translations(path: str) -> Iterator[Entry]:
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
        scoring = _check_scoring(record.get("scoring", {}), f"{path}:{number}")
        made_with = {key: record[key] for key in Origin._fields if key in record}
        for rank, (tokens, segment_lengths) in enumerate(targets, start=1):
            translation = Translation("", 0.0, tuple(tokens), segment_lengths=tuple(segment_lengths))
            yield Entry(number, rank, source, translation, scoring, made_with)


def _check_scoring(value: Any, path_line: str) -> Mapping[str, float]:
    """Return the options of equation 14 that a line records; raises InputError if they are malformed."""
    if not isinstance(value, dict) or value.keys() - set(SCORING_OPTIONS):
        raise InputError(
            f"{path_line}: scoring is {json.dumps(value)}; it holds numbers for {', '.join(SCORING_OPTIONS)}"
        )
    try:
        SearchOptions(**value)
    except InputError as error:
        raise InputError(f"{path_line}: scoring is wrong: {error}") from None
    return value


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _warn_of_other_origin(entries: Iterable[Entry], path: str, own: Origin) -> Iterator[Entry]:
    """Yield the entries, and warn once at the first one that was made with another precision or other checkpoints."""
    has_warned = False
    for entry in entries:
        if not has_warned and entry.made_with is not None and (differences := _differences(entry.made_with, own)):
            has_warned = True
            log.warning(
                "%s:%d: %s: scores may differ from those of the search, here and in further lines",
                path,
                entry.line,
                "; ".join(differences),
            )
        yield entry


def _differences(made_with: Mapping[str, Any], own: Origin) -> list[str]:
    """Describe how a line's origin differs from this command's; the order of checkpoints does not matter."""
    differences = []
    for key, value in own._asdict().items():
        value = sorted(value) if isinstance(value, tuple) else value
        found = made_with.get(key)
        if key not in made_with:
            differences.append(f"the line does not record its {key}")
        elif (sorted(found, key=str) if isinstance(found, list) else found) != value:
            differences.append(f"{key} is {json.dumps(found)} there and {json.dumps(value)} here")
    return differences


# Writing


def _formatted(entry: Entry, score: PairScore, tokenizers: Tokenizers, format: OutputFormat) -> str:
    """Return the line of a translation, without its end."""
    scored = Translation(
        "", score.score, score.tokens, score.attentions, log_prob=score.log_prob, source_tokens=score.source_tokens
    )
    extras = format.extras(tokenizers, entry.source, scored)
    if format.kind == "tsv":
        numbers = (f"{score.log_prob:.6f}", f"{score.score:.6f}")
        columns = [str(entry.line), str(entry.rank), *numbers, str(len(score.tokens))]
        return "\t".join([*columns, *map(str, extras.values())])
    words = words_of_target(tokenizers.target, score.tokens)
    word_log_probs = [0.0] * len(words.texts)
    for word, log_prob in zip(words.of_token, score.token_log_probs, strict=True):
        if word is not None:
            word_log_probs[word] += log_prob
    target = entry.target if isinstance(entry.target, str) else tokenizers.target.decode(score.tokens)
    return json.dumps(
        {
            "line": entry.line,
            "rank": entry.rank,
            "log_prob": score.log_prob,
            "score": score.score,
            "tokens": list(score.tokens),
            "token_log_probs": list(score.token_log_probs),
            "source": entry.source,
            "target": target,
            "word_log_probs": word_log_probs,
            **extras,
        }
    )
