"""Choose search options by the scores of a dev set.

`combinations` lists the search options of a grid, `tune` translates the dev set with each of them and scores it, and
`write_config` writes the best ones as a decoding config.

The sources are encoded again for each combination. On the 1,014 dev sentences of Multi30k, that took 0.9 of 11.4
seconds of processor time with beam 5 (multi30k_en_de, int8, one thread), so keeping the states would save 8%.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gnmt.config.build import component_yaml
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.translator import Translator
from gnmt.errors import InputError, format_count
from gnmt.evaluation.compare import Table
from gnmt.evaluation.evaluate import Rows
from gnmt.evaluation.metrics import Scores, score_translations
from gnmt.fileio import write_atomically
from gnmt.logs import counter, progress_bar


@dataclass(frozen=True)
class Trial:
    """Search options with the scores of their translations.

    Args:
        options: All options of the search.
        values: Those of the grid, by name.
        scores: BLEU and chrF.
    """

    options: SearchOptions
    values: Mapping[str, Any]
    scores: Scores

    def overrides(self) -> list[str]:
        """Return the values as command line overrides."""
        return [f"decoding.{name}={'null' if value is None else value}" for name, value in self.values.items()]


def combinations(
    options: SearchOptions, grid: Mapping[str, Sequence[Any] | None]
) -> list[tuple[SearchOptions, dict[str, Any]]]:
    """Return the options of every combination of the grid, with the values that the grid gives.

    Args:
        options: Options that the grid does not name.
        grid: Values of search options by name; None for the value in `options`.

    Raises:
        InputError: The grid is empty, or names an unknown option, no value or a value that is not allowed.
    """
    given = {name: values for name, values in grid.items() if values is not None}
    if not given:
        raise InputError("grid has no values to try: give some, as in grid.length_penalty_alpha=[0.6,1.0]")
    for name, values in given.items():
        if not values:
            raise InputError(f"grid.{name}=[] has no values to try: give some, or null for the recorded value")
    found = []
    for values in itertools.product(*given.values()):
        changes = dict(zip(given, values, strict=True))
        try:
            found.append((options.with_changes(changes), changes))
        except InputError as error:
            raise InputError(f"grid: {error}") from None
    return found


def tune(
    translator: Translator,
    rows: Rows,
    settings: Sequence[tuple[SearchOptions, dict[str, Any]]],
    tokenize: str,
    lowercase: bool,
) -> list[Trial]:
    """Translate a text with every combination of a grid, and return each with its scores, in the same order.

    Args:
        translator: The model.
        rows: Source and references of each sentence.
        settings: Result of `combinations` for the translator's options.
        tokenize: Tokenization of BLEU.
        lowercase: BLEU and chrF ignore case.
    """
    sources, *references = zip(*rows, strict=True)
    trials = []
    with progress_bar(description="translating", unit="line", total=len(settings) * len(sources)) as bar:
        for options, values in settings:
            translations = translator.translate(sources, progress=counter(bar), **values)
            texts = [translation.text for translation in translations]
            scores = score_translations(texts, *references, tokenize=tokenize, lowercase=lowercase)
            trials.append(Trial(options, values, scores))
    return trials


def best_trial(trials: Sequence[Trial], metric: str) -> Trial:
    """Return the trial with the highest score, the first of equal ones. metric: `bleu` or `chrf`."""
    return max(trials, key=lambda trial: getattr(trial.scores, metric))


def table_of(trials: Sequence[Trial], best: Trial) -> Table:
    """Return a table of all trials in which the best one is marked.

    Its notes hold the signatures, and the options whose best value is the largest of several: still larger ones may be
    better.
    """
    at_end = []
    for name, value in best.values.items():
        tried = {trial.values[name] for trial in trials} - {None}
        if len(tried) > 1 and value == max(tried):
            at_end.append(f"{name}={value} is the largest value tried: larger ones may be better")
    rows = [
        [
            *("null" if value is None else f"{value}" for value in trial.values.values()),
            f"{trial.scores.bleu:.2f}",
            f"{trial.scores.chrf:.2f}",
            "best" if trial is best else "",
        ]
        for trial in trials
    ]
    return Table(
        [*best.values, "BLEU", "chrF", ""],
        rows,
        [*at_end, *(best.scores.signatures[metric] for metric in ("bleu", "chrf"))],
    )


def write_config(
    path: Path, best: Trial, metric: str, checkpoints: Sequence[str], test_set: str, num_trials: int
) -> None:
    """Write the options of a trial as a config of the group `decoding`.

    Args:
        path: The file, <folder>/decoding/<name>.yaml: with --config-dir <folder>, commands take decoding=<name>.
        best: The trial.
        metric: The metric that chose it.
        checkpoints: Checkpoints of the model.
        test_set: Name of the dev set.
        num_trials: Number of trials from which it was chosen.
    """
    scores = best.scores
    header = [
        f"# The best of {format_count(num_trials, 'combination')} by {metric} on {test_set}, {', '.join(checkpoints)}:",
        f"# BLEU {scores.bleu:.2f} ({scores.signatures['bleu']})",
        f"# chrF {scores.chrf:.2f} ({scores.signatures['chrf']})",
    ]
    text = component_yaml(SearchOptions, asdict(best.options))
    write_atomically(path, ("\n".join(header) + "\n" + text).encode())
