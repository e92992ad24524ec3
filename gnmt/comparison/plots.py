"""Runs side by side as pictures: a line for each group of runs that differ in their seed alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from gnmt.comparison.gradients import mean_by_layer
from gnmt.comparison.records import RunRecord
from gnmt.comparison.table import NOTHING, Group, differing_settings, group_runs, length_curves
from gnmt.config import shown
from gnmt.reporting.figures import lines_figure, save
from gnmt.reporting.gradient_norms import place_of_layer
from gnmt.types import InputError

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
    layers = sorted({layer for norms in means.values() for layer in norms}, key=place_of_layer)
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
