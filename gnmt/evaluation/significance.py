"""Test whether systems differ by more than chance on one test set.

`compare_systems` gives each system's scores with confidence intervals, and p-values of the differences to a baseline.
Intervals and p-values describe the sampling of test sentences. `compare_seeds` describes another source of chance, the
seed of training.
"""

from __future__ import annotations

import logging
import math
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

from sacrebleu.metrics.base import Metric
from sacrebleu.significance import PairedTest, Result

from gnmt.errors import format_count
from gnmt.evaluation.compare import NOTHING, SEGMENT_SCORE_DIGITS, Table
from gnmt.evaluation.metrics import METRIC_TITLES, MeanMetric
from gnmt.evaluation.systems import Scoring, System

Test = Literal["bootstrap", "randomization"]

_DEFAULT_SAMPLES: dict[Test, int] = {"bootstrap": 1000, "randomization": 10_000}

# By degrees of freedom from 1: the 0.975 quantile of Student's t-distribution. It falls, so for more degrees of freedom
# the last one gives a slightly wider interval.
_T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)


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

    It has a row for each metric and system. Segment scores of other programs are averaged, and tested like the metrics.
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
    num_samples = num_samples or _DEFAULT_SAMPLES[test]
    rows: list[list[str]] = []

    def add(metrics: dict[str, Metric], inputs: Sequence[Sequence[Any]], digits: int) -> dict[str, str]:
        """Add a row for each metric and system, and return the signatures of the metrics."""
        with _sacrebleu_seed(seed):
            found, scores = PairedTest(
                [(system.name, texts) for system, texts in zip(systems, inputs, strict=True)],
                metrics,
                list(references),
                test_type={"bootstrap": "bs", "randomization": "ar"}[test],
                n_samples=num_samples,
                n_ar_confidence=0 if test == "randomization" else -1,
            )()
        for title, name in zip(metrics, found, strict=True):
            baseline, *others = [one for one in scores[name] if isinstance(one, Result)]
            cells = [[NOTHING, NOTHING]]
            cells += [[f"{one.score - baseline.score:+.{digits}f}", f"{p_value(one, baseline):.4f}"] for one in others]
            for system, result, difference in zip(systems, [baseline, *others], cells, strict=True):
                score = f"{result.score:.{digits}f}"
                rows.append([title, system.name, score, interval(result, digits), *difference])
        return {title: str(signature) for title, signature in zip(metrics, found.values(), strict=True)}

    notes = [
        f"{_test_set(systems)}; baseline: {systems[0].name}; {_described(test, num_samples)}, seed {seed}",
        "p is the probability of a difference at least this large between equally good systems, by the choice of test "
        "sentences alone: another seed of training is another source of chance",
    ]
    if scoring.metrics:
        metrics = {METRIC_TITLES[name]: metric for name, metric in scoring.build().items()}
        signatures = add(metrics, [system.translations for system in systems], digits=2)
        for title, signature in signatures.items():
            notes.append(f"{title}: {'smaller is better; ' if title == 'TER' else ''}{signature}")
    for name in systems[0].segment_scores:
        # The test reads no segment itself, so it resamples given scores as it resamples translations.
        given = [system.segment_scores[name] for system in systems]
        add({name: MeanMetric(name)}, given, digits=SEGMENT_SCORE_DIGITS)
        notes.append(f"{name}: mean of the scores that another program gave the sentences")
    return Table(["metric", "system", "score", "95% interval", "difference", "p"], rows, notes)


def interval(result: Result, digits: int = 2) -> str:
    """Return the text of the 95% confidence interval."""
    assert result.mean is not None
    assert result.ci is not None
    return f"{result.mean - result.ci:.{digits}f} to {result.mean + result.ci:.{digits}f}"


def p_value(result: Result, baseline: Result) -> float:
    """Return the p-value of a difference. Without a difference it is 1, for which sacreBLEU gives 1/(samples + 1)."""
    assert result.p_value is not None
    return 1.0 if result.score == baseline.score else result.p_value


def _described(test: Test, num_samples: int) -> str:
    if test == "bootstrap":
        return f"paired bootstrap with {format_count(num_samples, 'resampled test set', comma=True)}"
    return f"paired approximate randomization with {format_count(num_samples, 'random exchange', comma=True)}"


def _test_set(systems: Sequence[System]) -> str:
    """Return the name of the test set, if it is known, and the number of its sentences."""
    names = [system.test_set for system in systems if system.test_set is not None]
    return ", ".join([*names[:1], format_count(len(systems[0].translations), "sentence", comma=True)])


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

    Evaluations of runs belong together if settings and evaluation (checkpoint, search options) are equal and the seeds
    differ. Returns None if there are no such runs.
    """
    groups: list[list[System]] = []
    for system in systems:
        group = next((group for group in groups if _differ_in_seed(group, system)), None)
        if group is None:
            groups.append([system])
        else:
            group.append(system)
    if max(map(len, groups)) < 2:
        return None
    rows = []

    def add(title: str, score_of: Callable[[System], float], digits: int) -> None:
        for group in groups:
            seeds = ", ".join(str(seed) for seed in sorted(one.seed for one in group if one.seed is not None))
            row = [title, group[0].name, seeds or NOTHING]
            rows.append(row + mean_and_interval([score_of(system) for system in group], digits))

    for metric_name, metric in scoring.build().items():
        add(METRIC_TITLES[metric_name], partial(_score, metric, list(references)), digits=2)
    for name in systems[0].segment_scores:
        add(name, partial(_mean_of_segments, name), SEGMENT_SCORE_DIGITS)
    note = "± is the sample standard deviation over seeds of training; the interval is that of the mean over seeds"
    return Table(["metric", "runs", "seeds", "mean", "95% t-interval"], rows, [note])


def _differ_in_seed(group: Sequence[System], system: System) -> bool:
    """Return whether a system differs from each of a group in nothing but its seed."""
    return (
        system.settings is not None
        and group[0].settings == system.settings
        and group[0].evaluation == system.evaluation
        and system.seed not in [other.seed for other in group]
    )


def _score(metric: Metric, references: Sequence[Sequence[str]], system: System) -> float:
    return float(metric.corpus_score(system.translations, references).score)


def _mean_of_segments(name: str, system: System) -> float:
    return statistics.fmean(system.segment_scores[name])


def mean_and_interval(values: Sequence[float], digits: int = 2) -> list[str]:
    """Return the texts of mean ± sample standard deviation, and of the 95% t-interval of the mean."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return [f"{mean:.{digits}f}", NOTHING]
    deviation = statistics.stdev(values)
    quantile = _T_QUANTILES[min(len(values) - 1, len(_T_QUANTILES)) - 1]
    half_width = quantile * deviation / math.sqrt(len(values))
    return [
        f"{mean:.{digits}f} ± {deviation:.{digits}f}",
        f"{mean - half_width:.{digits}f} to {mean + half_width:.{digits}f}",
    ]
