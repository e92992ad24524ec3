"""Runs side by side as pictures: a line for each group of runs that differ in their seed alone."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from gnmt.config.run_folder import compared_settings
from gnmt.errors import InputError, shown
from gnmt.evaluation.run_records import Evaluated, RunRecord, mean_by_layer
from gnmt.reporting.figures import lines_figure, save
from gnmt.training.train_metrics import layer_sort_key

NOTHING = "–"

FigureOf = Callable[[RunRecord], float | None]
"""Finds one of a run's figures."""


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone. settings: what they have in common, flat."""

    runs: list[RunRecord]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Table:
    """notes: what stands below, such as signatures and what is wrong with some runs."""

    header: list[str]
    rows: list[list[str]]
    notes: list[str]

    def as_markdown(self) -> str:
        """A table with its notes as a list."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        table = ["| " + " | ".join(on_one_line(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]
        return "\n".join([*table, *([""] if self.notes else []), *(f"- {on_one_line(note)}" for note in self.notes)])

    def as_tsv(self) -> str:
        """Rows with tabs; the notes begin with #."""
        lines = ["\t".join(map(on_one_line, line)) for line in [self.header, *self.rows]]
        return "\n".join([*lines, *(f"# {on_one_line(note)}" for note in self.notes)])


def on_one_line(cell: str) -> str:
    """Without tabs and line breaks, which the name of a folder may hold."""
    return " ".join(cell.split())


def group_runs(runs: Sequence[RunRecord]) -> list[Group]:
    """In the order of their first runs."""
    groups: list[Group] = []
    for run in runs:
        settings = compared_settings(run.config)
        group = next((group for group in groups if group.settings == settings), None)
        if group is None:
            groups.append(Group([run], settings))
        else:
            group.runs.append(run)
    return groups


def compare(runs: Sequence[RunRecord]) -> Table:
    """Settings that differ, parameters, updates, the best dev figures, those of evaluate.py, speed and time.

    Several seeds give mean ± sample standard deviation. Unfinished and damaged runs take part with what they have, and
    are named below.
    """
    groups = group_runs(runs)
    differing, notes = differing_settings(groups)
    columns = columns_of(runs)
    header = ["run", "seeds", *differing, *(name for name, _, _ in columns)]
    rows = [
        [
            group.runs[0].folder.name,
            ", ".join(seeds(group.runs)),
            *(shown(group.settings.get(key, NOTHING), quote=False) for key in differing),
            *(spread([figure(run) for run in group.runs], digits) for _, figure, digits in columns),
        ]
        for group in groups
    ]
    notes += [
        *same_seed_notes(groups),
        "dev figures are those of the evaluation with the best dev BLEU; ± is the standard deviation over seeds",
        *signature_notes(runs),
        *(f"{run.folder}: {problem}" for run in runs for problem in run.problems),
    ]
    return Table(header, rows, notes)


@dataclass(frozen=True)
class LengthCurve:
    """BLEU over length of a group on one of evaluate.py's results: for each range a value of each run, or None."""

    group: Group
    seeds: list[str]
    evaluation: str
    bleu: list[list[float | None]]


def length_curves(groups: Sequence[Group]) -> tuple[dict[str, int], list[LengthCurve]]:
    """The ranges of source lengths with the most sentences that a run has in each, and the groups' curves over them.

    Raises InputError where no run holds such figures.
    """
    evaluations = [evaluated for group in groups for run in group.runs for evaluated in run.evaluations.values()]
    counts: dict[tuple[int, int | None], int] = {}
    for row in (row for evaluated in evaluations for row in evaluated.by_length):
        place = (row["from_words"], row["to_words"])
        counts[place] = max(counts.get(place, 0), row["num_sentences"])
    if not counts:
        raise InputError(
            "by_length: none of the runs holds BLEU by length: run evaluate.py checkpoint=…/best.pt on each of them"
        )
    places = sorted(counts, key=lambda place: (place[0], place[1] is None, place[1] or 0))
    curves = []
    for group in groups:
        for name in sorted({name for run in group.runs for name in run.evaluations}):
            runs = [run for run in group.runs if name in run.evaluations]
            bleu = [
                {(row["from_words"], row["to_words"]): row["bleu"] for row in run.evaluations[name].by_length}
                for run in runs
            ]
            by_range: list[list[float | None]] = [[of_run.get(place) for of_run in bleu] for place in places]
            curves.append(LengthCurve(group, seeds(runs), name, by_range))
    return {f"{low}+" if high is None else f"{low}-{high}": counts[low, high] for low, high in places}, curves


def compare_by_length(runs: Sequence[RunRecord]) -> Table:
    """BLEU for each range of source lengths, a row for each group and evaluation; see length_curves."""
    groups = group_runs(runs)
    differing, notes = differing_settings(groups)
    ranges, curves = length_curves(groups)
    header = ["run", "seeds", *differing, "evaluation", *(f"{words} words" for words in ranges)]
    rows = [
        [
            curve.group.runs[0].folder.name,
            ", ".join(curve.seeds),
            *(shown(curve.group.settings.get(key, NOTHING), quote=False) for key in differing),
            curve.evaluation,
            *(spread(values, 1) for values in curve.bleu),
        ]
        for curve in curves
    ]
    counts = ", ".join(map(str, ranges.values()))
    return Table(header, rows, [*notes, f"BLEU by words of the source; sentences in each range, at most: {counts}"])


def columns_of(runs: Sequence[RunRecord]) -> list[tuple[str, FigureOf, int]]:
    """Name, figure of a run, and digits behind the point."""
    columns: list[tuple[str, FigureOf, int]] = [
        ("parameters", lambda run: run.parameters, 0),
        ("updates", lambda run: run.updates, 0),
        ("dev loss", lambda run: run.dev.get("dev/loss"), 3),
        ("dev BLEU", lambda run: run.dev.get("dev/bleu"), 2),
        ("dev chrF", lambda run: run.dev.get("dev/chrf"), 2),
    ]
    for name in sorted({name for run in runs for name in run.evaluations}):
        columns += [
            (f"{name} BLEU", evaluation_figure(name, lambda evaluated: evaluated.scores["bleu"]), 2),
            (f"{name} chrF", evaluation_figure(name, lambda evaluated: evaluated.scores["chrf"]), 2),
        ]
        rate = evaluation_figure(name, lambda evaluated: evaluated.sentences_per_second)
        if any(rate(run) is not None for run in runs):  # evaluations from before it was written down lack it
            columns.append((f"{name} sentences/s", rate, 0))
    return [
        *columns,
        ("tokens/s", lambda run: run.tokens_per_second, 0),
        ("training minutes", lambda run: None if run.seconds is None else run.seconds / 60, 1),
        *(column for column in spike_columns() if any(column[1](run) is not None for run in runs)),
    ]


def spike_columns() -> list[tuple[str, FigureOf, int]]:
    """What runs from before these were logged lack."""
    return [
        ("largest gradient norm", lambda run: run.largest_gradient_norm, 2),
        ("largest loss rise", lambda run: run.largest_loss_rise, 2),
        ("skipped updates", lambda run: run.skipped_updates, 0),
    ]


def evaluation_figure(name: str, of: Callable[[Evaluated], float | None]) -> FigureOf:
    """A figure of evaluate.py's results of that name."""

    def figure(run: RunRecord) -> float | None:
        return of(run.evaluations[name]) if name in run.evaluations else None

    return figure


def differing_settings(groups: Sequence[Group]) -> tuple[list[str], list[str]]:
    """The keys to show, and notes for the rest: those that go with them in every group, and those of one class alone.

    A key that a group lacks because it has another class there, as a Transformer has no `residual_from`, is shown only
    where those that have it differ: the classes stand in the table already.
    """
    alike: dict[tuple[str, ...], list[str]] = {}
    of_a_class = []
    for key in dict.fromkeys(key for group in groups for key in group.settings):
        values = tuple(shown(group.settings.get(key, NOTHING), quote=False) for group in groups)
        having = [group for group in groups if key in group.settings]
        lacking = [group for group in groups if key not in group.settings]
        if len({shown(group.settings[key], quote=False) for group in having}) == 1 and all(
            has_another_class(group, key, having) for group in lacking
        ):
            of_a_class += [key] if lacking else []
        else:
            alike.setdefault(values, []).append(key)
    shown_keys, notes = [], []
    for same in alike.values():
        first, *others = sorted(same, key=lambda key: (key.count("."), len(key), key))
        shown_keys.append(first)
        if others:
            notes.append(f"{first} stands for {', '.join(others)} too, which go with it in all of these runs")
    if of_a_class:
        notes.append(f"the same in all runs that have them, and so not shown: {', '.join(of_a_class)}")
    return shown_keys, notes


def has_another_class(group: Group, key: str, having: Sequence[Group]) -> bool:
    """Whether the component that holds the key elsewhere is of a class that none of those has."""
    *parents, _ = key.split(".")
    targets = [".".join([*parents[: depth + 1], "_target_"]) for depth in range(len(parents))]
    return any(all(group.settings.get(target) != other.settings.get(target) for other in having) for target in targets)


def signature_notes(runs: Sequence[RunRecord]) -> list[str]:
    """The signatures of all BLEU columns, with a warning where one column holds two."""
    notes = []
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for metric, signature in run.signatures.items():
            found.setdefault(f"dev {metric}", {})[signature] = None
        for name, evaluated in run.evaluations.items():
            for metric, signature in evaluated.signatures.items():
                if metric in ("bleu", "chrf"):
                    found.setdefault(f"{name} {metric}", {})[signature] = None
    for name, signatures in found.items():
        notes.append(f"{name}: {' and '.join(signatures)}")
        if len(signatures) > 1:
            notes[-1] += ": these figures do not compare"
    return notes


def same_seed_notes(groups: Sequence[Group]) -> list[str]:
    """Runs with equal settings and seed repeat one another, so that their spread is not one over seeds."""
    return [
        f"{group.runs[0].folder.name}: {len(found)} runs with {len(set(found))} different seeds, so ± is not over seeds"
        for group in groups
        if len(set(found := seeds(group.runs))) < len(found)
    ]


def seeds(runs: Sequence[RunRecord]) -> list[str]:
    """As they stand in the runs' configs, in their order as numbers."""
    found = [str(run.config.get("seed", NOTHING)) for run in runs]
    return sorted(found, key=lambda seed: (not seed.isdigit(), int(seed) if seed.isdigit() else 0, seed))


def spread(values: Sequence[float | None], digits: int) -> str:
    """`mean ± sample standard deviation` of what is there, with a count where some are missing."""
    known = [value for value in values if value is not None]
    if not known:
        return NOTHING
    text = f"{statistics.fmean(known):,.{digits}f}"
    # Whole numbers that are all the same have no spread to speak of.
    if len(known) > 1 and not (digits == 0 and len(set(known)) == 1):
        text += f" ± {statistics.stdev(known):,.{digits}f}"
    return text if len(known) == len(values) else f"{text} ({len(known)} of {len(values)})"


_LONGEST_LABEL = 60


def draw_plots(runs: Sequence[RunRecord], folder: Path, gradient_updates: int) -> list[Path]:
    """Writes every plot for which a run has figures, as PNG, and returns the paths.

    bleu_by_length (of what evaluate.py wrote), dev_loss and dev_bleu over updates, gradient_norm_by_layer (mean of what
    was recorded of the first gradient_updates updates). Raises InputError where there is nothing to draw, or no place
    for it.
    """
    draw: dict[str, Callable[[], Figure]] = {}
    if any(evaluated.by_length for run in runs for evaluated in run.evaluations.values()):
        draw["bleu_by_length"] = lambda: draw_by_length(runs)
    for name, label in (("loss", "dev loss, nats per token"), ("bleu", "dev BLEU")):
        if any(f"dev/{name}" in run.scalars for run in runs):
            draw[f"dev_{name}"] = lambda tag=f"dev/{name}", label=label: draw_over_updates(runs, tag, label)  # type: ignore[misc]
    if any(mean_by_layer(run.gradient_norms, gradient_updates) for run in runs):
        draw["gradient_norm_by_layer"] = lambda: draw_gradient_norms(runs, gradient_updates)
    if not draw:
        raise InputError(f"plots={folder}: none of the runs holds anything to draw: no evaluation was made yet")
    paths = []
    for name, make in draw.items():
        paths.append(folder / f"{name}.png")
        write_figure(make(), paths[-1], "plots")
    return paths


def write_figure(figure: Figure, path: Path, key: str) -> None:
    """Writes it. Raises InputError, with the key that named the path, where there is no place for it."""
    try:
        save(figure, path)
    except OSError as error:
        raise InputError(f"{key}: {path} cannot be written: {error.strerror or error}") from None


def draw_by_length(runs: Sequence[RunRecord]) -> Figure:
    """BLEU for each range of source lengths, of each group and evaluation, with the standard deviation over seeds."""
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
    """A scalar of TensorBoard over updates."""
    groups = group_runs(runs)
    steps = sorted({step for run in runs for step, _ in run.scalars.get(tag, [])})
    lines = {}
    for name, group in zip(labels_of(groups), groups, strict=True):
        curves = [dict(run.scalars.get(tag, [])) for run in group.runs]
        at_steps = {step: [curve[step] for curve in curves if step in curve] for step in steps}
        lines[name] = list(at_steps.values())
    return lines_figure(steps, lines, "updates", label)


def draw_gradient_norms(runs: Sequence[RunRecord], num_updates: int) -> Figure:
    """The norm of the gradient in each layer, before clipping, from the embeddings to the output."""
    groups = group_runs(runs)
    means = {id(run): mean_by_layer(run.gradient_norms, num_updates) for run in runs}
    layers = sorted({layer for norms in means.values() for layer in norms}, key=layer_sort_key)
    lines = {}
    for name, group in zip(labels_of(groups), groups, strict=True):
        of_runs = [means[id(run)] for run in group.runs]
        if any(of_runs):
            lines[name] = [[norms[layer] for norms in of_runs if layer in norms] for layer in layers]
    recorded = [update for run in runs for update, _ in run.gradient_norms if update <= num_updates]
    label = f"gradient norm, mean over updates {min(recorded)} to {max(recorded)}"
    return lines_figure(layers, lines, "layer", label, log_y=True)


def labels_of(groups: Sequence[Group]) -> list[str]:
    """A short name for each group, all different.

    The experiments' names where each group has its own, otherwise the settings that the table would show. Where these
    are none or too long, the names of the folders without the seed.
    """
    names = [group.runs[0].folder.name for group in groups]
    experiments = [name.split("__")[0] for name in names]
    for labels in (experiments, settings_of(groups), [re.sub(r"__seed-\w+", "", name) for name in names]):
        if len(set(labels)) == len(labels) and max(map(len, labels)) <= _LONGEST_LABEL:
            return labels
    return [f"{number}: {name}"[:_LONGEST_LABEL] for number, name in enumerate(names, start=1)]


def settings_of(groups: Sequence[Group]) -> list[str]:
    """Of each group the settings in which they differ, by the last part of the key where that is no other's too."""
    keys, _ = differing_settings(groups)
    last = [key.rpartition(".")[2] for key in keys]
    short = [end if last.count(end) == 1 else key for key, end in zip(keys, last, strict=True)]
    return [
        ", ".join(
            f"{name}={shown(group.settings.get(key, NOTHING), quote=False)}"
            for key, name in zip(keys, short, strict=True)
        )
        for group in groups
    ]
