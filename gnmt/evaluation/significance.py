"""Test whether systems differ by more than chance on one test set.

`read_systems` reads translations of one test set from run folders, from evaluate.py's files or from text files.
`compare_systems` gives each system's scores with confidence intervals, and p-values of the differences to a baseline.
Both describe the sampling of test sentences. `compare_seeds` describes another source of chance: the seed of training.
"""

from __future__ import annotations

import json
import logging
import math
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.significance import PairedTest, Result

from gnmt.config.run_folder import CONFIG, compared_settings
from gnmt.errors import InputError, format_count
from gnmt.evaluation.compare import NOTHING, Table
from gnmt.evaluation.evaluate import SENTENCE_COLUMNS
from gnmt.evaluation.metrics import check_tokenizer
from gnmt.fileio import parse_json, read_lines, read_text_lines

Test = Literal["bootstrap", "randomization"]

# By degrees of freedom from 1: the 0.975 quantile of Student's t-distribution.
_T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)


@dataclass(frozen=True)
class System:
    """Translations of a test set.

    Args:
        name: The path that named the system.
        translations: One for each sentence.
        references: For each set of references, one for each sentence; None for a text file, which has none.
        sources: The sentences that were translated; None for a text file.
        tokenize: Tokenization of BLEU in its evaluation; None for a text file.
        lowercase: Whether its evaluation ignored case; None for a text file.
        settings: Settings of its run without the seed, with dotted keys; None if it belongs to no run.
    """

    name: str
    translations: list[str]
    references: list[list[str]] | None = None
    sources: list[str] | None = None
    tokenize: str | None = None
    lowercase: bool | None = None
    settings: dict[str, Any] | None = None


@dataclass(frozen=True)
class Scoring:
    """The metrics and how they read the text.

    Args:
        metrics: Any of bleu, chrf and ter.
        tokenize: Tokenization of BLEU.
        lowercase: BLEU and chrF ignore case; sacreBLEU's TER always does.
    """

    metrics: Sequence[str] = ("bleu", "chrf", "ter")
    tokenize: str = "13a"
    lowercase: bool = False

    def build(self) -> dict[str, Metric]:
        """Return sacreBLEU's metrics by name."""
        makers: dict[str, Callable[[], Metric]] = {
            "bleu": lambda: BLEU(tokenize=self.tokenize, lowercase=self.lowercase),
            "chrf": lambda: CHRF(lowercase=self.lowercase),
            "ter": TER,
        }
        return {name: makers[name]() for name in self.metrics}


# Test


def compare_systems(
    systems: Sequence[System],
    references: Sequence[Sequence[str]],
    scoring: Scoring,
    *,
    test: Test = "bootstrap",
    num_samples: int | None = None,
    seed: int = 12345,
) -> Table:
    """Return a table of scores, 95% confidence intervals, differences to the first system, and their p-values.

    The test is sacreBLEU's. Paired bootstrap (Koehn 2004) draws test sets of the same size with replacement; paired
    approximate randomization (Riezler and Maxwell 2005) exchanges the translations of two systems at random. A p-value
    is the probability of a difference at least this large if the systems were equally good. The intervals are those of
    the bootstrap for both tests.

    Args:
        systems: The baseline, then the systems that are compared with it, at least one.
        references: For each set of references, one for each sentence.
        scoring: The metrics.
        test: `bootstrap` or `randomization`.
        num_samples: Number of resampled test sets, or of random exchanges; None for 1,000 and 10,000.
        seed: Seed of the samples.
    """
    logging.getLogger("sacrebleu").setLevel(logging.WARNING)  # it logs each metric of each system
    metrics = scoring.build()
    with _sacrebleu_seed(seed):
        paired_test = PairedTest(
            [(system.name, system.translations) for system in systems],
            metrics,
            list(references),
            test_type={"bootstrap": "bs", "randomization": "ar"}[test],
            n_samples=num_samples or 0,
            n_ar_confidence=0 if test == "randomization" else -1,
        )
        signatures, scores = paired_test()
    header, columns = ["system"], [[system.name for system in systems]]
    for name, results in list(scores.items())[1:]:  # the first column holds the names
        header += [name, "95% interval", "difference", "p"]
        columns += [
            [f"{result.score:.2f}" for result in results],
            [f"{result.mean - result.ci:.2f} to {result.mean + result.ci:.2f}" for result in results],
            [NOTHING, *(f"{result.score - results[0].score:+.2f}" for result in results[1:])],
            [NOTHING, *(f"{p_value(result, results[0]):.4f}" for result in results[1:])],
        ]
    notes = [
        f"{format_count(len(systems[0].translations), 'sentence')}; baseline: {systems[0].name}; {_described(test)}",
        "p is the probability of a difference at least this large between equally good systems, by the choice of test "
        "sentences alone: another seed of training is another source of chance",
        *(f"{name}: {signature}" for name, signature in signatures.items()),
    ]
    return Table(header, [list(row) for row in zip(*columns, strict=True)], notes)


def p_value(result: Result, baseline: Result) -> float:
    """Return the p-value of a difference. Without a difference it is 1, for which sacreBLEU gives 1/(samples + 1)."""
    return 1.0 if result.score == baseline.score else result.p_value


def _described(test: Test) -> str:
    return {"bootstrap": "paired bootstrap", "randomization": "paired approximate randomization"}[test]


@contextmanager
def _sacrebleu_seed(seed: int) -> Iterator[None]:
    """Set the seed that sacreBLEU reads from the environment."""
    before = os.environ.get("SACREBLEU_SEED")
    os.environ["SACREBLEU_SEED"] = str(seed)
    try:
        yield
    finally:
        if before is None:
            del os.environ["SACREBLEU_SEED"]
        else:
            os.environ["SACREBLEU_SEED"] = before


def compare_seeds(systems: Sequence[System], references: Sequence[Sequence[str]], scoring: Scoring) -> Table | None:
    """Return mean, sample standard deviation and 95% t-interval of the mean over runs that differ in their seed.

    Returns None if no two systems are runs with the same settings.
    """
    groups: list[list[System]] = []
    for system in systems:
        group = next((group for group in groups if group[0].settings == system.settings), None)
        if group is None or system.settings is None:
            groups.append([system])
        else:
            group.append(system)
    if max(map(len, groups)) < 2:
        return None
    metrics = scoring.build()
    header = ["runs", "seeds"]
    for name in metrics:
        header += [f"{name} over seeds", "95% t-interval of the mean"]
    rows = []
    for group in groups:
        row = [group[0].name, str(len(group))]
        for metric in metrics.values():
            scores = [metric.corpus_score(system.translations, list(references)).score for system in group]
            row += mean_and_interval(scores)
        rows.append(row)
    return Table(header, rows, ["± is the sample standard deviation over seeds"])


def mean_and_interval(values: Sequence[float]) -> list[str]:
    """Return the texts of mean ± sample standard deviation, and of the 95% t-interval of the mean."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return [f"{mean:.2f}", NOTHING]
    deviation = statistics.stdev(values)
    quantile = _T_QUANTILES[min(len(values) - 1, len(_T_QUANTILES)) - 1]
    half_width = quantile * deviation / math.sqrt(len(values))
    return [f"{mean:.2f} ± {deviation:.2f}", f"{mean - half_width:.2f} to {mean + half_width:.2f}"]


# Read


def read_systems(paths: Sequence[str], target_paths: Sequence[str], test_set: str | None) -> list[System]:
    """Return the systems, which all translated the same sentences.

    Args:
        paths: Run folders, sentence tables of evaluate.py (.tsv), or text files.
        target_paths: Files of references, needed if all systems are text files. They replace those of the evaluations.
        test_set: Test set of the run folders; None for the only one.

    Raises:
        InputError: A path cannot be read, or the systems translated different text.
    """
    if len(paths) < 2:
        raise InputError("systems: give two or more, the baseline first")
    if len(set(paths)) < len(paths):
        raise InputError("systems: a path is given twice")
    systems = [read_system(path, test_set) for path in paths]
    first = next((system for system in systems if system.references is not None), None)
    if first is None and not target_paths:
        raise InputError("systems are text files: give their references with target=")
    for system in systems:
        if len(system.translations) != len(systems[0].translations):
            raise InputError(
                f"{systems[0].name} has {format_count(len(systems[0].translations), 'translation')} and {system.name} "
                f"has {len(system.translations)}: all systems must translate the same test set"
            )
        if first is not None and system.references is not None and _text(system) != _text(first):
            raise InputError(f"{first.name} and {system.name} were evaluated on different text: evaluate both on one")
    return systems


def _text(system: System) -> tuple[list[str] | None, list[list[str]] | None]:
    return system.sources, system.references


def choose_references(systems: Sequence[System], target_paths: Sequence[str]) -> list[list[str]]:
    """Return the references in the files, or those of the first system that has some.

    Raises InputError if a file has another number of lines than there are translations.
    """
    num_lines = len(systems[0].translations)
    if not target_paths:
        return next(system.references for system in systems if system.references is not None)
    references = [list(read_text_lines(path)) for path in target_paths]
    for path, lines in zip(target_paths, references, strict=True):
        if len(lines) != num_lines:
            raise InputError(
                f"{systems[0].name} has {format_count(num_lines, 'translation')} and {path} has "
                f"{format_count(len(lines), 'line')}: line N of the references belongs to translation N"
            )
    return references


def choose_scoring(
    systems: Sequence[System], metrics: Sequence[str], tokenize: str | None, lowercase: bool | None
) -> Scoring:
    """Return the metrics, by default as the systems were evaluated; raises InputError if they were unequally."""
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


def read_system(path: str, test_set: str | None) -> System:
    """Read a system; see `read_systems`."""
    if Path(path).is_dir():
        return _read_evaluation(path, find_evaluation(Path(path), test_set))
    if path.endswith(".tsv"):
        return _read_evaluation(path, Path(path))
    return System(path, list(read_lines(path)))


def find_evaluation(run: Path, test_set: str | None) -> Path:
    """Return the sentence table of a run's only evaluation, or of the only one on the test set.

    Raises InputError if there is none, or more than one.
    """
    found = []
    for path in sorted((run / "translations").glob("*.tsv")):
        scores = _scores_of(path)
        if test_set is None or scores.get("test_set") == test_set:
            found.append(path)
    of_test_set = "" if test_set is None else f" on {test_set}"
    if not found:
        raise InputError(f"{run} has no evaluation{of_test_set}: run scripts/evaluate.py on its best.pt first")
    if len(found) > 1:
        raise InputError(
            f"{run} has {len(found)} evaluations{of_test_set}: give test_set=, or one of these files instead of the "
            f"folder: {', '.join(map(str, found))}"
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
        by_line[int(line[0])] = line
    if sorted(by_line) != [*range(1, len(lines) + 1)]:
        raise InputError(f"{path}: the column line must hold each number from 1 to {len(lines)} once")
    rows = [by_line[number] for number in range(1, len(lines) + 1)]
    scores = _scores_of(path)
    run_config = path.parent.parent / CONFIG
    source, translation, reference = (SENTENCE_COLUMNS.index(key) for key in ("source", "translation", "reference"))
    return System(
        name,
        [row[translation] for row in rows],
        [[row[column] for row in rows] for column in range(reference, len(heading))],
        [row[source] for row in rows],
        scores.get("bleu_tokenize"),
        scores.get("lowercase"),
        compared_settings(json.loads(run_config.read_bytes())) if run_config.is_file() else None,
    )
