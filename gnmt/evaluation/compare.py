"""Compare runs by tables and plots.

Runs that differ only in their seed form a group, which is one row of a table and one line of a plot. `compare` makes
the tables of scores and settings, one for each corpus, `compare_by_length` that of BLEU by source length, and
`draw_plots` the plots. `filter_runs` and `with_segment_scores` prepare the records of the runs.
"""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from gnmt.config.run_folder import compared_settings
from gnmt.errors import InputError, did_you_mean, flatten, format_count, format_value
from gnmt.evaluation.metrics import METRIC_TITLES
from gnmt.evaluation.run_records import EvaluationRecord, RunRecord, mean_by_layer
from gnmt.evaluation.segment_scores import ScoredText, ScoreFiles, check_number, normalized
from gnmt.fileio import read_lines, write_atomically
from gnmt.reporting.figures import image_bytes, lines_figure
from gnmt.training.train_metrics import layer_sort_key

NOTHING = "–"  # a missing value in a table
SEGMENT_SCORE_DIGITS = 4  # decimals of the means of segment scores, most of which are between 0 and 1
_LONGEST_LABEL = 60  # characters of a plot's legend
_SMALLER_IS_BETTER = ("loss", "TER", "loss rise", "gradient norm", "minutes", "skipped updates")  # ends of columns

ValueOf = Callable[[RunRecord], float | None]
"""Returns one value of a run, None if it has none."""


def filter_runs(runs: Sequence[RunRecord], conditions: Sequence[str]) -> list[RunRecord]:
    """Return the runs that meet all conditions.

    Args:
        runs: The records of the runs.
        conditions: Conditions `key=pattern`. The key is `run` (the folder's name) or a setting, in full or by its last
            part, such as `encoder.dropout`.

    Raises:
        InputError: No run meets all conditions, or a condition has another form.
    """
    chosen = [run for run in runs if all(meets(run, condition) for condition in conditions)]
    if not chosen:
        found = [_values_of(runs, condition.partition("=")[0]) for condition in conditions]
        raise InputError(
            f"filter: none of {format_count(len(runs), 'run')} meets {' and '.join(conditions)}; {'; '.join(found)}"
        )
    return chosen


def _values_of(runs: Sequence[RunRecord], key: str) -> str:
    """Return the values that a key of a condition has in the runs, for a message."""
    values = dict.fromkeys(value for run in runs for value in values_for(run, key))
    return f"{key} is {', '.join(values)} in them" if values else f"{key} is no setting of any of them"


def meets(run: RunRecord, condition: str) -> bool:
    """Return whether a run meets a condition; see `filter_runs`."""
    key, equals, pattern = condition.partition("=")
    if not equals:
        raise InputError(
            f"filter: found {condition}, allowed is key=value, such as optimizer.lr=0.005 or run=multi30k*"
        )
    return any(fnmatchcase(value, pattern) for value in values_for(run, key))


def values_for(run: RunRecord, key: str) -> list[str]:
    """Return the texts of the run's setting with this key, or else of the settings whose keys end with it.

    The value of the key `run` is the folder's name.
    """
    if key == "run":
        return [run.folder.name]
    settings = flatten(run.config)
    if key in settings:  # seed is not decoding.seed
        return [format_value(settings[key], quote=False)]
    return [format_value(value, quote=False) for name, value in settings.items() if f".{name}".endswith(f".{key}")]


@dataclass(frozen=True)
class TableOptions:
    """Which columns a table shows, and in which order its rows.

    Args:
        sort: Column by whose mean the rows are sorted, the best first (the smallest loss, TER, loss rise or gradient
            norm, the fewest minutes or skipped updates, otherwise the largest value); None for the order of the runs.
        columns: Patterns of column names, such as `*BLEU`, or the last parts of settings, such as `dropout`, besides
            `Table.key_columns`; None for all columns, which are the settings that differ and all results.
    """

    sort: str | None = None
    columns: Sequence[str] | None = None


def compare(runs: Sequence[RunRecord], options: TableOptions = TableOptions()) -> list[Table]:
    """Return a table for each corpus: dev and test scores, the settings that differ, sizes, speed and time.

    Several seeds give mean ± sample standard deviation. Unfinished and damaged runs are included with the values that
    they have, and named in the notes. Raises InputError if a pattern or the column to sort by fits no column.
    """
    by_corpus: dict[str, list[RunRecord]] = {}
    for run in runs:
        by_corpus.setdefault(json.dumps(corpus_of(run)), []).append(run)
    tables = [compare_on_one_corpus(of_corpus, options.columns or ()) for of_corpus in by_corpus.values()]
    titles = [table.title for table in tables]
    for index, of_corpus in enumerate(by_corpus.values()):
        if titles.count(titles[index]) > 1:  # corpora of one name and languages have different dev sets
            tables[index] = replace(tables[index], title=f"{titles[index]}, dev: {dev_files(of_corpus[0])}")
    return selected(tables, options)


def compare_on_one_corpus(runs: Sequence[RunRecord], columns: Sequence[str] = ()) -> Table:
    """Return the table of runs of one corpus, with all columns, and with the settings that `columns` names."""
    groups = group_runs(runs)
    settings = differing_settings(groups)
    differing, notes = list(settings.keys), [] if columns else list(settings.left_out)
    scores, others = columns_of(runs)
    results = [column.name for column in (*scores, *others)]
    for pattern in columns:
        if not any(shows(pattern, name) for name in (*results, *short_keys(differing))):
            keys = dict.fromkeys(key for group in groups for key in group.settings)
            differing += [key for key in keys if shows(pattern, key) and key not in differing]

    def values(group: Group, columns: Sequence[Column]) -> list[str]:
        return [spread([column.value_of(run) for run in group.runs], column.digits) for column in columns]

    rows = [
        [
            group.runs[0].folder.name,
            ", ".join(seeds(group.runs)),
            *values(group, scores),
            *(group.cell(key) for key in differing),
            *values(group, others),
        ]
        for group in groups
    ]
    header = ["run", "seeds", *(column.name for column in scores), *short_keys(differing)]
    notes += [
        *same_seed_notes(groups),
        "dev scores are those of best.pt; ± is the standard deviation over seeds",
        *(f"{run.folder}: {problem}" for run in runs for problem in run.problems),
    ]
    _, name, *languages, _ = corpus_of(runs[0])
    title = f"{name}, {' to '.join(languages)}" if all(languages) else name
    blocks: dict[str, list[str]] = {}
    for column in scores:
        blocks.setdefault(column.block, []).append(column.name)
    blocks["settings"] = short_keys(differing)
    for column in others:
        blocks.setdefault(column.block, []).append(column.name)
    header += [column.name for column in others]
    column_notes = signature_notes(runs) | settings.column_notes()
    return Table(header, rows, notes, title, column_notes=column_notes, blocks=blocks)


def shows(pattern: str, name: str) -> bool:
    """Return whether a pattern of `TableOptions.columns` shows the column of this name."""
    return fnmatchcase(name, pattern) or name.endswith(f".{pattern}")


def dev_files(run: RunRecord) -> str:
    """Return the source of a run's dev set as its config has it."""
    dev = corpus_of(run)[-1]
    named = [dev[key] for key in ("source", "pairs") if dev.get(key)] if isinstance(dev, dict) else []
    return str(named[0]) if named else format_value(dev, quote=False)


def corpus_of(run: RunRecord) -> list[Any]:
    """Return what distinguishes the dev sets of runs: class, name, languages and dev files of the corpus."""
    data = run.config.get("data")
    data = data if isinstance(data, dict) else {}
    keys = ("_target_", "name", "source_language", "target_language", "dev")
    return [data.get(key, "") for key in keys]


def selected(tables: Sequence[Table], options: TableOptions) -> list[Table]:
    """Return the tables with sorted rows and the chosen columns.

    Raises InputError if a pattern or the column to sort by fits no column of any table.
    """
    names = list(dict.fromkeys(name for table in tables for name in table.header))
    wrong = [("columns", one) for one in options.columns or () if not any(shows(one, name) for name in names)]
    if options.sort is not None and options.sort not in names:
        wrong.append(("sort", options.sort))
    for key, found in wrong:
        text = found.strip("*").lower()
        similar = [name for name in names if text and text in name.lower()][:3]
        advice = f"; did you mean {' or '.join(similar)}?" if similar else did_you_mean(found, names)
        raise InputError(f"{key}: found {found}, allowed are the columns {', '.join(names)}{advice}")
    return [table.selected(options) for table in tables]


def compare_by_length(runs: Sequence[RunRecord], options: TableOptions = TableOptions()) -> Table:
    """Return a table of BLEU by range of source lengths, with a row for each group and evaluation.

    Raises InputError as `compare` does, and if no run has BLEU by length.
    """
    groups = group_runs(runs)
    settings = differing_settings(groups)
    differing, notes = settings.keys, [] if options.columns else list(settings.left_out)
    ranges, curves = length_curves(groups)
    header = ["run", "seeds", *short_keys(differing), "evaluation", *(f"{words} words" for words in ranges)]
    rows = [
        [
            curve.group.runs[0].folder.name,
            ", ".join(curve.seeds),
            *(curve.group.cell(key) for key in differing),
            curve.evaluation,
            *(spread(values, 1) for values in curve.bleu),
        ]
        for curve in curves
    ]
    counts = ", ".join(map(str, ranges.values()))
    notes.append(f"BLEU by words of the source; sentences in each range, at most: {counts}")
    key_columns = ("run", "seeds", "evaluation")
    table = Table(header, rows, notes, key_columns=key_columns, column_notes=settings.column_notes())
    return selected([table], options)[0]


@dataclass(frozen=True)
class Table:
    """A table with an optional title above it, and notes below.

    Args:
        header: Names of the columns.
        rows: The cells of each row.
        notes: Notes about the whole table, such as problems of runs.
        title: Its title; empty for none.
        key_columns: Columns that say what a row is, which every choice of columns includes.
        column_notes: A note for each column that has one, such as its signature; columns with equal notes share a line.
        blocks: Names of groups of columns, each with its columns without the key columns; see `in_blocks`.
    """

    header: list[str]
    rows: list[list[str]]
    notes: list[str]
    title: str = ""
    key_columns: tuple[str, ...] = ("run", "seeds")
    column_notes: Mapping[str, str] = field(default_factory=dict)
    blocks: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def all_notes(self) -> list[str]:
        """Return the notes of the columns that are shown, then those about the table."""
        columns_of_note: dict[str, list[str]] = {}
        for name in self.header:
            if name in self.column_notes:
                columns_of_note.setdefault(self.column_notes[name], []).append(name)
        return [*(f"{', '.join(names)}: {note}" for note, names in columns_of_note.items()), *self.notes]

    def as_markdown(self) -> str:
        """Return the title as a heading, a Markdown table with aligned columns, and the notes as a list."""
        title = [f"## {on_one_line(self.title)}", ""] if self.title else []
        lines = [[on_one_line(cell).replace("|", "\\|") for cell in line] for line in (self.header, *self.rows)]
        widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
        lines.insert(1, ["-" * width for width in widths])
        table = [
            f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in lines
        ]
        notes = [f"- {on_one_line(note)}" for note in self.all_notes()]
        return "\n".join([*title, *table, *([""] if notes else []), *notes])

    def as_tsv(self) -> str:
        """Return the title after `# `, tab-separated rows, and the notes, each after `# `."""
        title = [f"# {on_one_line(self.title)}"] if self.title else []
        lines = ["\t".join(map(on_one_line, line)) for line in [self.header, *self.rows]]
        return "\n".join([*title, *lines, *(f"# {on_one_line(note)}" for note in self.all_notes())])

    def in_blocks(self) -> list[Table]:
        """Return a table for each block, without rows that have no value in it. The notes stand below the last one.

        The tables of many columns are too wide for a terminal.
        """
        tables = []
        for block, names in self.blocks.items():
            kept = [n for n, name in enumerate(self.header) if name in self.key_columns or name in names]
            keys = [n for n in kept if self.header[n] in self.key_columns]
            rows = [
                [row[n] for n in kept] for row in self.rows if any(row[n] != NOTHING for n in kept if n not in keys)
            ]
            title = f"{self.title}: {block}" if self.title else block
            header = [self.header[n].removeprefix(f"{block} ") for n in kept]
            of_columns = {
                name.removeprefix(f"{block} "): note for name, note in self.column_notes.items() if name in names
            }
            if rows:
                tables.append(Table(header, rows, [], title, self.key_columns, of_columns))
        if not tables:
            return [self]
        tables[-1].notes.extend(self.notes)
        return tables

    def selected(self, options: TableOptions) -> Table:
        """Return the table with sorted rows and the chosen columns."""
        rows = self.rows
        if options.sort in self.header:
            column = self.header.index(options.sort)
            is_smaller_better = options.sort.endswith(_SMALLER_IS_BETTER)
            rows = sorted(rows, key=lambda row: _sort_key(row[column], is_smaller_better))
        if options.columns is None:
            return replace(self, rows=rows)
        patterns = (*self.key_columns, *options.columns)
        kept = [n for n, name in enumerate(self.header) if any(shows(pattern, name) for pattern in patterns)]
        chosen = [[row[n] for n in kept] for row in rows]
        return replace(self, header=[self.header[n] for n in kept], rows=chosen, blocks={})


def _sort_key(cell: str, is_smaller_better: bool) -> tuple[int, float, str]:
    """Return a key by which numbers come first, the best one first, then texts, then missing values."""
    if cell == NOTHING:
        return 2, 0.0, cell
    try:
        number = float(cell.split()[0].replace(",", ""))
    except ValueError:
        return 1, 0.0, cell
    return 0, number if is_smaller_better else -number, cell


def on_one_line(cell: str) -> str:
    """Replace tabs and line breaks, which a folder's name may hold, by spaces."""
    return " ".join(cell.split())


# Groups and settings


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed, and the settings that they share, with dotted keys."""

    runs: list[RunRecord]
    settings: dict[str, Any]

    def cell(self, key: str) -> str:
        """Return the text of a setting in a table; of a class, its name without the module."""
        value = self.settings.get(key, NOTHING)
        if key.endswith("_target_") and isinstance(value, str):
            value = value.rpartition(".")[2]
        if isinstance(value, float):  # a search proposes numbers of 17 digits
            value = float(f"{value:.6g}")
        return format_value(value, quote=False)


def group_runs(runs: Sequence[RunRecord]) -> list[Group]:
    """Return the groups in the order of their first runs."""
    groups: list[Group] = []
    for run in runs:
        settings = compared_settings(run.config)
        group = next((group for group in groups if group.settings == settings), None)
        if group is None:
            groups.append(Group([run], settings))
        else:
            group.runs.append(run)
    return groups


class DifferingSettings(NamedTuple):
    """The settings in which groups differ.

    Attributes:
        keys: Those to show as columns.
        notes: By key, a note about the keys that it stands for.
        left_out: A note about the keys that are left out because of their class; empty if there are none.
    """

    keys: list[str]
    notes: dict[str, str]
    left_out: list[str]

    def column_notes(self) -> dict[str, str]:
        """Return the notes by the names of the columns."""
        names = dict(zip(self.keys, short_keys(self.keys), strict=True))
        return {names[key]: note for key, note in self.notes.items()}


def differing_settings(groups: Sequence[Group]) -> DifferingSettings:
    """Return the settings in which groups differ.

    Of keys that always change together, one is shown. A key that some groups lack because their component is of another
    class (a Transformer has no `residual_from`) is shown only if its values differ, since the classes are shown.
    """
    together: dict[tuple[str, ...], list[str]] = {}
    class_keys = []
    for key in dict.fromkeys(key for group in groups for key in group.settings):
        values = tuple(group.cell(key) for group in groups)
        having = [group for group in groups if key in group.settings]
        lacking = [group for group in groups if key not in group.settings]
        if len({group.cell(key) for group in having}) == 1 and all(
            has_another_class(group, key, having) for group in lacking
        ):
            class_keys += [key] if lacking else []
        else:
            together.setdefault(values, []).append(key)
    shown_keys, notes = [], {}
    for keys in together.values():
        # Options of a decoder follow those of the encoder unless they are set.
        first, *others = sorted(keys, key=lambda key: (key.count("."), ".decoder." in key, len(key), key))
        shown_keys.append(first)
        if others:
            verb = "changes" if len(others) == 1 else "change"
            notes[first] = f"stands for {', '.join(others)} too, which {verb} with it in all of these runs"
    parents = Counter(key.rpartition(".")[0] for key in class_keys)
    counts = [f"{format_count(number, 'setting')} of {parent}" for parent, number in parents.items()]
    left_out = [f"not shown, because equal in all runs that have them: {', '.join(counts)}"] if counts else []
    return DifferingSettings(shown_keys, notes, left_out)


def short_keys(keys: Sequence[str]) -> list[str]:
    """Return the last part of each key where it is unique, and the whole key elsewhere."""
    last = [key.rpartition(".")[2] for key in keys]
    return [end if last.count(end) == 1 else key for key, end in zip(keys, last, strict=True)]


def has_another_class(group: Group, key: str, having: Sequence[Group]) -> bool:
    """Return whether a component around the key is of another class in `group` than in all groups of `having`."""
    *parents, _ = key.split(".")
    targets = [".".join([*parents[: depth + 1], "_target_"]) for depth in range(len(parents))]
    return any(all(group.settings.get(target) != other.settings.get(target) for other in having) for target in targets)


def seeds(runs: Sequence[RunRecord]) -> list[str]:
    """Return the seeds of the runs in numeric order."""
    found = [str(run.config.get("seed", NOTHING)) for run in runs]
    return sorted(found, key=lambda seed: (not seed.isdigit(), int(seed) if seed.isdigit() else 0, seed))


def same_seed_notes(groups: Sequence[Group]) -> list[str]:
    """Return a note for each group in which runs have the same seed, so that ± is not a deviation over seeds."""
    return [
        f"{group.runs[0].folder.name}: {len(found)} runs with {len(set(found))} different seeds, so ± is not over seeds"
        for group in groups
        if len(set(found := seeds(group.runs))) < len(found)
    ]


# Results


class Column(NamedTuple):
    """A column of results: its name, the value of a run, the number of decimals, and its block of the table."""

    name: str
    value_of: ValueOf
    digits: int
    block: str = "size and speed"


def columns_of(runs: Sequence[RunRecord]) -> tuple[list[Column], list[Column]]:
    """Return the columns of scores, and those of sizes, speed, time and spikes of the training.

    Evaluations, spikes, and metrics besides BLEU, chrF and loss have columns only if some run has a value for them.
    """
    scores = [Column(f"dev {title}", dev_value(f"dev/{metric}"), 2, "dev") for metric, title in METRIC_TITLES.items()]
    scores.append(Column("dev loss", dev_value("dev/loss"), 3, "dev"))
    others = [
        Column("parameters", lambda run: run.parameters, 0),
        Column("updates", lambda run: run.updates, 0),
        Column("tokens/s", lambda run: run.tokens_per_second, 0),
        Column("training minutes", lambda run: None if run.seconds is None else run.seconds / 60, 1),
    ]
    for name, shown in short_evaluations(runs).items():
        scores += [
            Column(f"{shown} {title}", evaluation_value(name, score_value(metric)), 2, shown)
            for metric, title in METRIC_TITLES.items()
        ]
        found = [run.evaluations[name].segment_means for run in runs if name in run.evaluations]
        for of_program in dict.fromkeys(of_program for means in found for of_program in means):
            value = evaluation_value(name, segment_mean_value(of_program))
            scores.append(Column(f"{shown} {of_program}", value, SEGMENT_SCORE_DIGITS, shown))
        speed = evaluation_value(name, lambda evaluated: evaluated.sentences_per_second)
        others.append(Column(f"{shown} sentences/s", speed, 0, shown))
    spikes = [
        Column("largest gradient norm", lambda run: run.largest_gradient_norm, 2),
        Column("largest loss rise", lambda run: run.largest_loss_rise, 2),
        Column("skipped updates", lambda run: run.skipped_updates, 0),
    ]
    others += [column for column in spikes if has_values(column, runs)]
    always = ("BLEU", "chrF", "loss")
    return [column for column in scores if column.name.endswith(always) or has_values(column, runs)], others


def has_values(column: Column, runs: Sequence[RunRecord]) -> bool:
    """Return whether some run has a value for the column."""
    return any(column.value_of(run) is not None for run in runs)


def short_evaluations(runs: Sequence[RunRecord]) -> dict[str, str]:
    """Return the name of each evaluation, without the hash of its text and without `.best`, where that is unique.

    The evaluation of best.pt on dev is called `evaluated dev`, since the dev scores of training are called `dev`.
    """
    names = sorted({name for run in runs for name in run.evaluations})
    short = [re.sub(r"\.best(?=\.|$)", "", re.sub(r"-[0-9a-f]{8,}(?=\.)", "", name)) for name in names]
    short = ["evaluated dev" if name == "dev" else name for name in short]
    return {name: one if short.count(one) == 1 else name for name, one in zip(names, short, strict=True)}


def dev_value(tag: str) -> ValueOf:
    """Return a function that finds a dev metric of a run."""
    return lambda run: run.dev.get(tag)


def score_value(metric: str) -> Callable[[EvaluationRecord], float | None]:
    """Return a function that finds a metric of an evaluation."""
    return lambda evaluated: evaluated.scores.get(metric)


def segment_mean_value(name: str) -> Callable[[EvaluationRecord], float | None]:
    """Return a function that finds the mean of another program's segment scores."""
    return lambda evaluated: evaluated.segment_means.get(name)


def evaluation_value(name: str, value_of: Callable[[EvaluationRecord], float | None]) -> ValueOf:
    """Return a function that finds a value in a run's evaluation `name`."""
    return lambda run: value_of(run.evaluations[name]) if name in run.evaluations else None


def spread(values: Sequence[float | None], digits: int) -> str:
    """Return `mean ± sample standard deviation` of the known values, with a count if some are missing."""
    known = [value for value in values if value is not None]
    if not known:
        return NOTHING
    text = f"{statistics.fmean(known):,.{digits}f}"
    # Equal whole numbers, such as parameters, are shown without ± 0.
    if len(known) > 1 and not (digits == 0 and len(set(known)) == 1):
        text += f" ± {statistics.stdev(known):,.{digits}f}"
    return text if len(known) == len(values) else f"{text} ({len(known)} of {len(values)})"


def signature_notes(runs: Sequence[RunRecord]) -> dict[str, str]:
    """Return the signature of each column of a metric, with a warning if its runs have several."""
    shown = short_evaluations(runs)
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        of_run = {"dev": run.signatures} | {shown[name]: one.signatures for name, one in run.evaluations.items()}
        for text, signatures in of_run.items():
            for metric, title in METRIC_TITLES.items():
                if metric in signatures:
                    found.setdefault(f"{text} {title}", {})[signatures[metric]] = None
    return {
        column: " and ".join(signatures) + (": these scores cannot be compared" if len(signatures) > 1 else "")
        for column, signatures in found.items()
    }


# Segment scores of other programs


def with_segment_scores(runs: Sequence[RunRecord], score_files: Sequence[ScoreFiles]) -> list[RunRecord]:
    """Return the runs whose evaluations have the means of the segment scores in the files.

    The .json file of comet-score belongs to all evaluations with the translations in it. Of text files, there is one
    for each run, in their order, which belongs to the run's only evaluation with as many sentences as it has lines.

    Raises:
        InputError: Scores belong to no evaluation or to several, or the number of text files is not that of runs.
    """
    if not score_files:
        return list(runs)
    means: dict[Path, dict[str, float]] = {}  # by translations file
    paths_of_all = [evaluated.translations_file for run in runs for evaluated in run.evaluations.values()]
    translations = {path: [normalized(line) for line in read_lines(str(path))] for path in paths_of_all}
    for files in score_files:
        if not files.path and len(files.texts) != len(runs):
            raise InputError(
                f"scores: {format_count(len(files.texts), 'file')} ({files.described}) for "
                f"{format_count(len(runs), 'run')}: give one file for each run, in their order: "
                f"{', '.join(str(run.folder) for run in runs)}"
            )
        for index, text in enumerate(files.texts):
            if files.path:
                paths = [path for path, lines in translations.items() if lines == text.translations]
            else:
                paths = [_scored_evaluation(text, runs[index], translations)]
            if not paths:
                raise InputError(
                    f"scores: {files.path} has scores of {text.label}, but no evaluation of these runs has its "
                    f"{format_count(len(text.scores), 'translation')}: run comet-score on the files "
                    "translations/*.txt of the runs as they are now"
                )
            for path in paths:
                means.setdefault(path, {})[files.name] = statistics.fmean(text.scores)
    return [
        replace(
            run,
            evaluations={
                name: replace(evaluated, segment_means=means.get(evaluated.translations_file, {}))
                for name, evaluated in run.evaluations.items()
            },
        )
        for run in runs
    ]


def _scored_evaluation(text: ScoredText, run: RunRecord, translations: Mapping[Path, list[str]]) -> Path:
    """Return the translations of a run to which the lines of a text file of scores belong."""
    own = [evaluated.translations_file for evaluated in run.evaluations.values()]
    if len(own) == 1:
        check_number(text, str(own[0]), len(translations[own[0]]))
        return own[0]
    fitting = [path for path in own if len(translations[path]) == len(text.scores)]
    if len(fitting) != 1:
        raise InputError(
            f"scores: {text.label} has {format_count(len(text.scores), 'line')}, and {run.folder} has "
            f"{format_count(len(fitting), 'evaluation')} with as many sentences, allowed is one; scores that "
            "`comet-score --to_json` writes name the translations"
        )
    return fitting[0]


# BLEU by source length


@dataclass(frozen=True)
class LengthCurve:
    """BLEU by source length of one group in one evaluation.

    Args:
        group: The runs.
        seeds: Seeds of the runs that have this evaluation.
        evaluation: Its name.
        bleu: For each range of lengths, one value of each run, None if it has no sentence in that range.
    """

    group: Group
    seeds: list[str]
    evaluation: str
    bleu: list[list[float | None]]


def length_curves(groups: Sequence[Group]) -> tuple[dict[str, int], list[LengthCurve]]:
    """Return the ranges of source lengths, each with its largest number of sentences in a run, and all curves.

    Raises InputError if no run has BLEU by length.
    """
    evaluations = [evaluated for group in groups for run in group.runs for evaluated in run.evaluations.values()]
    counts: dict[tuple[int, int | None], int] = {}
    for row in (row for evaluated in evaluations for row in evaluated.by_length):
        words = (row["from_words"], row["to_words"])
        counts[words] = max(counts.get(words, 0), row["num_sentences"])
    if not counts:
        raise InputError(
            "by_length: none of the runs holds BLEU by length: run evaluate.py checkpoint=…/best.pt on each of them"
        )
    ranges = sorted(counts, key=lambda words: (words[0], words[1] is None, words[1] or 0))
    curves = []
    for group in groups:
        for name in sorted({name for run in group.runs for name in run.evaluations}):
            runs = [run for run in group.runs if name in run.evaluations]
            bleu = [
                {(row["from_words"], row["to_words"]): row["bleu"] for row in run.evaluations[name].by_length}
                for run in runs
            ]
            by_range: list[list[float | None]] = [[of_run.get(words) for of_run in bleu] for words in ranges]
            curves.append(LengthCurve(group, seeds(runs), name, by_range))
    return {f"{low}+" if high is None else f"{low}-{high}": counts[low, high] for low, high in ranges}, curves


# Plots


def draw_plots(runs: Sequence[RunRecord], folder: Path, gradient_updates: int) -> list[Path]:
    """Write each plot for which a run has data, as PNG, and return the paths.

    The plots are bleu_by_length (from evaluate.py's files), dev_loss and dev_bleu over updates, and
    gradient_norm_by_layer. Raises InputError if there is nothing to draw, and OSError if a file cannot be written.

    Args:
        runs: The records of the runs.
        folder: Existing folder for the files.
        gradient_updates: Gradient norms are means over this number of updates from the start.
    """
    figures: dict[str, Figure] = {}
    if any(evaluated.by_length for run in runs for evaluated in run.evaluations.values()):
        figures["bleu_by_length"] = draw_by_length(runs)
    for name, label in (("loss", "dev loss, nats per token"), ("bleu", "dev BLEU")):
        if any(f"dev/{name}" in run.scalars for run in runs):
            figures[f"dev_{name}"] = draw_over_updates(runs, f"dev/{name}", label)
    if any(mean_by_layer(run.gradient_norms, gradient_updates) for run in runs):
        figures["gradient_norm_by_layer"] = draw_gradient_norms(runs, gradient_updates)
    if not figures:
        raise InputError(f"plots={folder}: none of the runs has results to draw: train until dev is evaluated")
    paths = {name: folder / f"{name}.png" for name in figures}
    for name, figure in figures.items():
        write_atomically(paths[name], image_bytes(figure, paths[name].name))
    return list(paths.values())


def draw_by_length(runs: Sequence[RunRecord]) -> Figure:
    """Draw BLEU by range of source lengths, with a line for each group and evaluation."""
    groups = group_runs(runs)
    ranges, curves = length_curves(groups)
    labels = dict(zip(map(id, groups), labels_of(groups), strict=True))
    several = len({curve.evaluation for curve in curves}) > 1
    lines = {}
    for curve in curves:
        label = labels[id(curve.group)] + (f", {curve.evaluation}" if several else "")
        lines[label] = [[value for value in values if value is not None] for values in curve.bleu]
    return lines_figure(list(ranges), lines, "words of the source", "BLEU")


def draw_over_updates(runs: Sequence[RunRecord], tag: str, label: str) -> Figure:
    """Draw a TensorBoard scalar over updates."""
    groups = group_runs(runs)
    steps = sorted({step for run in runs for step, _ in run.scalars.get(tag, [])})
    lines = {}
    for name, group in zip(labels_of(groups), groups, strict=True):
        curves = [dict(run.scalars.get(tag, [])) for run in group.runs]
        at_steps = {step: [curve[step] for curve in curves if step in curve] for step in steps}
        lines[name] = list(at_steps.values())
    return lines_figure(steps, lines, "updates", label)


def draw_gradient_norms(runs: Sequence[RunRecord], num_updates: int) -> Figure:
    """Draw the mean gradient norm of each layer before clipping, from the embeddings to the output."""
    groups = group_runs(runs)
    means = [[mean_by_layer(run.gradient_norms, num_updates) for run in group.runs] for group in groups]
    layers = sorted({layer for of_group in means for norms in of_group for layer in norms}, key=layer_sort_key)
    lines = {}
    for name, of_group in zip(labels_of(groups), means, strict=True):
        if any(of_group):
            lines[name] = [[norms[layer] for norms in of_group if layer in norms] for layer in layers]
    recorded = [update for run in runs for update, _ in run.gradient_norms if update <= num_updates]
    label = f"gradient norm, mean over updates {min(recorded)} to {max(recorded)}"
    return lines_figure(layers, lines, "layer", label, log_y=True)


def labels_of(groups: Sequence[Group]) -> list[str]:
    """Return a short, unique label for each group.

    The first of these that is unique and short enough is used: experiment names, the settings that differ, folder names
    without the seed, numbered folder names.
    """
    names = [group.runs[0].folder.name for group in groups]
    experiments = [name.split("__")[0] for name in names]
    for labels in (experiments, setting_labels(groups), [re.sub(r"__seed-\w+", "", name) for name in names]):
        if len(set(labels)) == len(labels) and max(map(len, labels)) <= _LONGEST_LABEL:
            return labels
    return [f"{number}: {name}"[:_LONGEST_LABEL] for number, name in enumerate(names, start=1)]


def setting_labels(groups: Sequence[Group]) -> list[str]:
    """Return the differing settings of each group as `key=value`; a key is shortened to its last part if unique."""
    keys = differing_settings(groups).keys
    short = short_keys(keys)
    return [", ".join(f"{name}={group.cell(key)}" for key, name in zip(keys, short, strict=True)) for group in groups]
