"""Systems that are compared on one test set: translations of runs, of evaluate.py, of translate.py, of any program.

`read_systems` reads them. `choose_references`, `choose_sources` and `choose_scoring` find the texts and the metrics
with which they are compared.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sacrebleu.metrics.base import Metric

from gnmt.config.run_folder import CONFIG, compared_settings
from gnmt.errors import InputError, format_count
from gnmt.evaluation.evaluate import SENTENCE_COLUMNS, checkpoints_hash
from gnmt.evaluation.metrics import MetricName, build_metrics, check_tokenizer
from gnmt.evaluation.run_records import read_config
from gnmt.evaluation.segment_scores import ScoreFiles, finite, normalized, scores_of
from gnmt.fileio import parse_json, read_lines, read_text_lines


@dataclass(frozen=True)
class System:
    """Translations of a test set.

    Args:
        name: The path that named the system.
        translations: One for each sentence.
        references: For each set of references, one for each sentence; None for a system that is not an evaluation.
        sources: The sentences that were translated; None for a text file.
        tokenize: Tokenization of BLEU in an evaluation, otherwise None.
        lowercase: Whether an evaluation ignored case, otherwise None.
        test_set: Name of an evaluation's test set, otherwise None.
        evaluation: Name of an evaluation's files without the hash of the checkpoint: test set, checkpoint and search
            options; otherwise None.
        settings: Settings of its run without the seed, with dotted keys; None if it belongs to no run.
        seed: Seed of its run; None if it belongs to no run.
        run: Its run folder; None if it belongs to no run.
        scores: The search's score of each translation; None if they are not known.
        attention: For each sentence the attention, a row for each word of the translation and a column for each word of
            the source; None if it is not known.
        word_log_probs: For each sentence the log-probability of each word of the translation; None if it is not known.
        segment_scores: Scores of another program, by their name, one for each translation.
    """

    name: str
    translations: list[str]
    references: list[list[str]] | None = None
    sources: list[str] | None = None
    tokenize: str | None = None
    lowercase: bool | None = None
    test_set: str | None = None
    evaluation: str | None = None
    settings: dict[str, Any] | None = None
    seed: int | None = None
    run: Path | None = None
    scores: list[float] | None = None
    attention: list[list[list[float]]] | None = None
    word_log_probs: list[list[float]] | None = None
    segment_scores: Mapping[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Scoring:
    """The metrics and how they read the text.

    Args:
        metrics: Names of the metrics.
        tokenize: Tokenization of BLEU and GLEU.
        lowercase: BLEU, chrF, chrF++ and GLEU ignore case; sacreBLEU's TER always does.
    """

    metrics: Sequence[MetricName] = ("bleu", "chrf", "chrfpp", "ter", "gleu")
    tokenize: str = "13a"
    lowercase: bool = False

    def build(self) -> dict[MetricName, Metric]:
        """Return the metrics by name."""
        return build_metrics(self.metrics, self.tokenize, self.lowercase)


def read_systems(paths: Sequence[str], target_paths: Sequence[str], test_set: str | None) -> list[System]:
    """Return the systems, which all translated the same sentences.

    Args:
        paths: Run folders, tables of evaluate.py (.tsv), outputs of translate.py or score.py with format=jsonl, or text
            files with one translation per line.
        target_paths: Files of references, needed if no system is an evaluation. They replace those of the evaluations.
        test_set: Test set of the run folders; None for the only one. If a run has no evaluation with this name, one of
            the same sentences and references counts.

    Raises:
        InputError: A path cannot be read, or the systems translated different text.
    """
    if len(paths) < 2:
        raise InputError("systems: give two or more, the baseline first")
    if len(set(paths)) < len(paths):
        raise InputError("systems: a path is given twice")
    texts = {text for path in paths for name, text in _evaluated_texts(Path(path)).values() if name == test_set}
    systems = [read_system(path, test_set, texts) for path in paths]
    if not target_paths and all(system.references is None for system in systems):
        raise InputError("systems: none of them is an evaluation, which has references: give them with target=")
    if not systems[0].translations:
        raise InputError(f"systems: {systems[0].name} has no sentence: there is nothing to compare")
    for key in ("translations", "sources", "references"):
        known = [system for system in systems if getattr(system, key) is not None]
        for system in known[1:]:
            check_same_text(known[0], system, key)
    return systems


def with_segment_scores(systems: Sequence[System], score_files: Sequence[ScoreFiles]) -> list[System]:
    """Return the systems with their scores in the files; raises InputError if a system lacks some."""
    translations = {system.name: system.translations for system in systems}
    by_name = {files.name: scores_of(files, translations) for files in score_files}
    return [
        replace(system, segment_scores={name: scores[index] for name, scores in by_name.items()})
        for index, system in enumerate(systems)
    ]


def check_same_text(first: System, system: System, key: str) -> None:
    """Raise InputError if two systems have other numbers of translations, or other sources or references."""
    if key == "translations":
        if len(system.translations) != len(first.translations):
            raise InputError(
                f"{first.name} has {format_count(len(first.translations), 'translation')} and {system.name} has "
                f"{len(system.translations)}: all systems must translate the same test set"
            )
    elif getattr(system, key) != getattr(first, key):
        raise InputError(f"{first.name} and {system.name} have different {key}: give systems of one test set")


def choose_references(systems: Sequence[System], target_paths: Sequence[str]) -> list[list[str]]:
    """Return the references in the files, or those of the first system that has some.

    Raises InputError if a file has another number of lines than there are translations.
    """
    if not target_paths:
        return next(system.references for system in systems if system.references is not None)
    return [_lines_for(systems[0], path, "the references belongs") for path in target_paths]


def choose_sources(systems: Sequence[System], source_path: str | None) -> list[str]:
    """Return the sources in the file, or those of the first system that has some; raises InputError without any."""
    if source_path is not None:
        return _lines_for(systems[0], source_path, "the source belongs")
    found = next((system.sources for system in systems if system.sources is not None), None)
    if found is None:
        raise InputError("systems are text files: give the sentences that they translate with source=")
    return found


def _lines_for(system: System, path: str, belongs: str) -> list[str]:
    """Return the lines of a file; raises InputError unless there is one for each translation of the system."""
    lines, num_translations = list(read_text_lines(path)), len(system.translations)
    if len(lines) != num_translations:
        raise InputError(
            f"{system.name} has {format_count(num_translations, 'translation')} and {path} has "
            f"{format_count(len(lines), 'line')}: line N of {belongs} to translation N"
        )
    return lines


def choose_scoring(
    systems: Sequence[System], metrics: Sequence[MetricName], tokenize: str | None, lowercase: bool | None
) -> Scoring:
    """Return the metrics, by default as the systems were evaluated.

    Raises InputError if they were evaluated unequally, or if there is neither a metric nor a segment score.
    """
    if not metrics and not systems[0].segment_scores:
        raise InputError("metrics: the list is empty, and there is no scores=: give one of them, as in metrics=[bleu]")
    for key, given, values in (
        ("bleu_tokenize", tokenize, {system.tokenize for system in systems} - {None}),
        ("lowercase", lowercase, {system.lowercase for system in systems} - {None}),
    ):
        if given is None and len(values) > 1:
            raise InputError(
                f"{key}: the systems were evaluated with {', '.join(sorted(map(str, values)))}: choose one"
            )
    if tokenize is None:
        tokenize = next((system.tokenize for system in systems if system.tokenize is not None), "13a")
    if lowercase is None:
        lowercase = next((system.lowercase for system in systems if system.lowercase is not None), False)
    check_tokenizer(tokenize, key="bleu_tokenize")
    return Scoring(tuple(dict.fromkeys(metrics)), tokenize, lowercase)


def read_system(path: str, test_set: str | None, texts: Collection[str] = ()) -> System:
    """Read a system; see `read_systems` and `find_evaluation`."""
    if Path(path).is_dir():
        return _read_evaluation(path, find_evaluation(Path(path), test_set, texts))
    if path.endswith(".tsv"):
        return _read_evaluation(path, Path(path))
    if path.endswith(".pt"):
        raise InputError(f"systems: {path} is a checkpoint: give its run folder, after scripts/evaluate.py")
    if path.endswith((".jsonl", ".jsonl.gz")):
        return _read_translations(path)
    return System(path, list(read_lines(path)))


def _read_translations(path: str) -> System:
    """Read the .jsonl output of translate.py, of which the best translations count, or of score.py."""
    sources, translations, scores, attention, log_probs = [], [], [], [], []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            entry = parse_json(line)
            if entry.get("rank", 1) != 1:  # score.py writes a line for each translation of an n-best list
                continue
            sources.append(normalized(entry["source"]))
            best = entry["translations"][0] if "translations" in entry else {**entry, "text": entry["target"]}
            translations.append(str(best["text"]))
            scores.append(finite(best["score"]))
            weights, words = best.get("word_attention"), best.get("word_log_probs")
            attention.append(None if weights is None else [[finite(weight) for weight in row] for row in weights])
            log_probs.append(None if words is None else [finite(log_prob) for log_prob in words])
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise InputError(
                f"{path}:{number}: not a line of translate.py or score.py with format=jsonl: {line[:80]!r}"
            ) from None
    return System(
        path,
        translations,
        sources=sources,
        scores=scores,
        attention=_of_every_line(attention),
        word_log_probs=_of_every_line(log_probs),
    )


def _of_every_line(values: list[Any]) -> list[Any] | None:
    """Return the values, or None if a line has none."""
    return values if values and None not in values else None


def _evaluated_texts(run: Path) -> dict[Path, tuple[str, str]]:
    """Return the name of the test set and the hash of its text for each sentence table of a run folder."""
    found = {}
    for path in sorted((run / "translations").glob("*.tsv")):
        name = str(_scores_of(path).get("test_set"))
        found[path] = name, path.name.removeprefix(f"{name}-").partition(".")[0]
    return found


def find_evaluation(run: Path, test_set: str | None, texts: Collection[str] = ()) -> Path:
    """Return the sentence table of a run's only evaluation, or of the only one on the test set.

    Evaluations of an earlier best.pt, which training has replaced since, do not count. Raises InputError if there is
    none, or more than one.

    Args:
        run: The run folder.
        test_set: Name of the test set; None for the only one.
        texts: Hashes of texts that count as the test set if none has its name.
    """
    found: list[Path] = []
    outdated: list[Path] = []
    best = run / "best.pt"
    newest = checkpoints_hash([best]) if best.is_file() else None
    evaluated = _evaluated_texts(run)
    names = [name for name, _ in evaluated.values()]
    for path, (found_set, text) in evaluated.items():
        name, _, digest = path.stem.rpartition(".")
        is_of_best = "best" in name.split(".")[1:]
        if test_set is None or (found_set == test_set if test_set in names else text in texts):
            (outdated if is_of_best and newest not in (None, digest) else found).append(path)
    of_test_set = "" if test_set is None else f" on {test_set}"
    if not found and outdated:
        raise InputError(
            f"{run} has an evaluation{of_test_set} of an earlier best.pt, which training has replaced since: run "
            "scripts/evaluate.py on its best.pt again"
        )
    if not found:
        others = f", only on {', '.join(dict.fromkeys(names))}" if names else ""
        raise InputError(f"{run} has no evaluation{of_test_set}{others}: run scripts/evaluate.py on its best.pt first")
    if len(found) > 1:
        several = len(set(names)) > 1 and test_set is None
        advice = f"give test_set= one of {', '.join(dict.fromkeys(names))}, or" if several else "give"
        raise InputError(
            f"{run} has {len(found)} evaluations{of_test_set}: {advice} one of these files instead of the folder: "
            f"{', '.join(map(str, found))}"
        )
    return found[0]


def _scores_of(path: Path) -> dict[str, Any]:
    """Return the scores that evaluate.py wrote beside a sentence table."""
    scores_file = path.with_suffix(".json")
    try:
        scores = parse_json(scores_file.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{scores_file}, which belongs to {path.name}, cannot be read: {error}") from None
    return scores if isinstance(scores, dict) else {}


def _read_evaluation(name: str, path: Path) -> System:
    """Read a sentence table of evaluate.py, and what its scores and its run say about it."""
    heading, *lines = [line.split("\t") for line in read_text_lines(str(path))] or [[]]
    if tuple(heading[: len(SENTENCE_COLUMNS)]) != SENTENCE_COLUMNS:
        raise InputError(
            f"{path}:1: not a table of evaluate.py, whose columns are {', '.join(SENTENCE_COLUMNS)}; a text file with "
            "one translation per line must not end in .tsv"
        )
    by_line: dict[int, list[str]] = {}
    for number, line in enumerate(lines, start=2):
        if len(line) != len(heading) or not line[0].isdigit():
            raise InputError(f"{path}:{number}: found {len(line)} columns, expected {len(heading)}, the first a number")
        try:
            finite(line[SENTENCE_COLUMNS.index("score")])
        except ValueError as error:
            raise InputError(f"{path}:{number}: score: {error}") from None
        by_line[int(line[0])] = line
    if sorted(by_line) != [*range(1, len(lines) + 1)]:
        raise InputError(f"{path}: the column line must hold each number from 1 to {len(lines)} once")
    rows = [by_line[number] for number in range(1, len(lines) + 1)]
    scores = _scores_of(path)
    run = path.parent.parent if (path.parent.parent / CONFIG).is_file() else None
    config = {} if run is None else read_config(run / CONFIG)
    keys = ("score", "source", "translation", "reference")
    score, source, translation, reference = map(SENTENCE_COLUMNS.index, keys)
    return System(
        name,
        [row[translation] for row in rows],
        [[row[column] for row in rows] for column in range(reference, len(heading))],
        [row[source] for row in rows],
        tokenize=scores.get("bleu_tokenize"),
        lowercase=scores.get("lowercase"),
        test_set=scores.get("test_set"),
        evaluation=path.stem.rpartition(".")[0],
        settings=None if run is None else compared_settings(config),
        seed=config.get("seed"),
        run=run,
        scores=[float(row[score]) for row in rows],
    )
