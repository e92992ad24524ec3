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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from sacrebleu.metrics.base import Metric
from sacrebleu.significance import PairedTest, Result

from gnmt.errors import format_count
from gnmt.evaluation.compare import NOTHING, SEGMENT_SCORE_DIGITS, Table
from gnmt.evaluation.metrics import MeanMetric
from gnmt.evaluation.systems import Scoring, System

Test = Literal["bootstrap", "randomization"]

# By degrees of freedom from 1: the 0.975 quantile of Student's t-distribution.
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

    Segment scores of other programs are averaged, and tested like the metrics. The test is sacreBLEU's. Paired
    bootstrap (Koehn 2004) draws test sets of the same size with replacement; paired approximate randomization (Riezler
    and Maxwell 2005) exchanges the translations of two systems at random. A p-value is the probability of a difference
    at least this large if the systems were equally good. The intervals are those of the bootstrap for both tests.

    Args:
        systems: The baseline, then the systems that are compared with it, at least one.
        references: For each set of references, one for each sentence.
        scoring: The metrics.
        test: `bootstrap` or `randomization`.
        num_samples: Number of resampled test sets, or of random exchanges; None for 1,000 and 10,000.
        seed: Seed of the samples.
    """
    logging.getLogger("sacrebleu").setLevel(logging.WARNING)  # it logs each metric of each system
    header, columns = ["system"], [[system.name for system in systems]]
    notes = [
        f"{format_count(len(systems[0].translations), 'sentence')}; baseline: {systems[0].name}; {_described(test)}",
        "p is the probability of a difference at least this large between equally good systems, by the choice of test "
        "sentences alone: another seed of training is another source of chance",
    ]

    def add(metrics: dict[str, Metric], inputs: Sequence[Sequence[Any]], digits: int) -> None:
        with _sacrebleu_seed(seed):
            signatures, scores = PairedTest(
                [(system.name, texts) for system, texts in zip(systems, inputs, strict=True)],
                metrics,
                list(references),
                test_type={"bootstrap": "bs", "randomization": "ar"}[test],
                n_samples=num_samples or 0,
                n_ar_confidence=0 if test == "randomization" else -1,
            )()
        for name, signature in signatures.items():
            results = [one for one in scores[name] if isinstance(one, Result)]
            header.extend([name, "95% interval", "difference", "p"])
            columns.extend(
                [
                    [f"{result.score:.{digits}f}" for result in results],
                    [interval(result, digits) for result in results],
                    [NOTHING, *(f"{result.score - results[0].score:+.{digits}f}" for result in results[1:])],
                    [NOTHING, *(f"{p_value(result, results[0]):.4f}" for result in results[1:])],
                ]
            )
            notes.append(f"{name}: {signature}")

    if scoring.metrics:
        add(scoring.build(), [system.translations for system in systems], digits=2)
    for name in systems[0].segment_scores:
        # The test never looks into the segments, so it resamples given scores as it resamples translations.
        given = [system.segment_scores[name] for system in systems]
        add({name: MeanMetric(name)}, given, digits=SEGMENT_SCORE_DIGITS)
    return Table(header, [list(row) for row in zip(*columns, strict=True)], notes)


def interval(result: Result, digits: int = 2) -> str:
    """Return the text of the 95% confidence interval."""
    assert result.mean is not None
    assert result.ci is not None
    return f"{result.mean - result.ci:.{digits}f} to {result.mean + result.ci:.{digits}f}"


def p_value(result: Result, baseline: Result) -> float:
    """Return the p-value of a difference. Without a difference it is 1, for which sacreBLEU gives 1/(samples + 1)."""
    assert result.p_value is not None
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
    for name in [*metrics, *systems[0].segment_scores]:
        header += [f"{name} over seeds", "95% t-interval of the mean"]
    rows = []
    for group in groups:
        row = [group[0].name, str(len(group))]
        for metric in metrics.values():
            scores = [metric.corpus_score(system.translations, list(references)).score for system in group]
            row += mean_and_interval(scores)
        for name in systems[0].segment_scores:
            means = [statistics.fmean(system.segment_scores[name]) for system in group]
            row += mean_and_interval(means, SEGMENT_SCORE_DIGITS)
        rows.append(row)
    return Table(header, rows, ["± is the sample standard deviation over seeds"])


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
