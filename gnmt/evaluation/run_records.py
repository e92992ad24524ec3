"""What a run folder says of its run, read from files that programs can read."""

from __future__ import annotations

import json
import logging
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import SCALARS, TENSORS, EventAccumulator

from gnmt.checkpoint.file import REQUIRED_ENTRIES, read_checkpoint
from gnmt.checkpoint.inspect import count_parameters
from gnmt.errors import InputError
from gnmt.training.train_metrics import GradientRecord, read_gradient_norms


def mean_by_layer(records: Sequence[GradientRecord], num_updates: int) -> dict[str, float]:
    """The mean over the records of the first num_updates updates, by layer; what was not finite is left out."""
    norms: dict[str, list[float]] = {}
    for _, by_layer in (record for record in records if record[0] <= num_updates):
        for layer, norm in by_layer.items():
            if norm is not None:
                norms.setdefault(layer, []).append(norm)
    return {layer: statistics.fmean(values) for layer, values in norms.items()}


def largest_loss_rise(means: Sequence[tuple[int, float]], largest: Sequence[tuple[int, float]]) -> float | None:
    """By how much an update's loss lay at most above the lowest mean that the run had reached before, nats per token.

    means, largest: of each logging interval the mean loss and that of the worst update, by the interval's last step.
    Batches differ, so it is above 0 in calm training too. None before the second interval, and at least 0.
    """
    worst_at = dict(largest)
    lowest, rise = None, None
    for step, mean in means:
        if lowest is not None and step in worst_at:
            rise = max(0.0 if rise is None else rise, worst_at[step] - lowest)
        lowest = mean if lowest is None else min(lowest, mean)
    return rise


@dataclass(frozen=True)
class Evaluated:
    """What evaluate.py wrote: scores in percent and signatures by metric, and a row for each range of lengths.

    sentences_per_second: of translating; None where it was not yet written down.
    """

    scores: dict[str, float]
    signatures: dict[str, str]
    by_length: list[dict[str, Any]]
    sentences_per_second: float | None = None


def read_evaluations(folder: Path, best_step: int | None, problems: list[str]) -> dict[str, Evaluated]:
    """The figures by the names of their files. Appends to problems what is none, and what is of another best.pt.

    best_step: update of the run's best.pt; None where it has none that can be read.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            figures = json.loads(path.read_bytes())
            evaluated = _evaluated(figures)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            problems.append(f"{path} is no result of evaluate.py ({_in_words(error)})")
            continue
        step = figures.get("step", best_step)  # the oldest files lack it
        if is_of_best(path) and best_step is not None and step != best_step:
            problems.append(
                f"{path} is left out: it measured the best.pt of update {step}, which is now that of update "
                f"{best_step}: run evaluate.py on it again"
            )
            continue
        found[path.stem] = evaluated
    return found


def is_of_best(path: Path) -> bool:
    """Whether a file's name, `<test set>.<checkpoint><variant>.json`, says that best.pt alone was measured."""
    return "best" in path.stem.split(".")[1:]


def _evaluated(figures: Any) -> Evaluated:
    """Raises KeyError for what is missing, and ValueError for what is of the wrong kind, by its key."""
    figures = _checked(figures, Mapping, "the file")
    signatures = _checked(figures["signatures"], Mapping, "signatures")
    rows = _checked(figures.get("by_length", []), list, "by_length")
    return Evaluated(
        {metric: _number(figures[metric], metric) for metric in ("bleu", "chrf")},
        {str(metric): _checked(signature, str, f"signatures.{metric}") for metric, signature in signatures.items()},
        [_row(row, f"by_length[{number}]") for number, row in enumerate(rows)],
        _number(figures["sentences_per_second"], "sentences_per_second") if "sentences_per_second" in figures else None,
    )


def _row(row: Any, place: str) -> dict[str, Any]:
    """A range of lengths: from_words, to_words (None for any more), num_sentences, bleu."""
    row = _checked(row, Mapping, place)
    to_words = row["to_words"]
    return {
        "from_words": _checked(row["from_words"], int, f"{place}.from_words"),
        "to_words": None if to_words is None else _checked(to_words, int, f"{place}.to_words"),
        "num_sentences": _checked(row["num_sentences"], int, f"{place}.num_sentences"),
        "bleu": _number(row["bleu"], f"{place}.bleu"),
    }


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} is {value!r}, allowed is a finite number")
    return float(value)


def _checked(value: Any, kind: type, key: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        allowed = {Mapping: "an object", list: "a list", str: "text", int: "a whole number"}[kind]
        raise ValueError(f"{key} is {str(value)[:40]!r}, allowed is {allowed}")
    return value


def _in_words(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return f"it lacks {error.args[0]}" if isinstance(error, KeyError) else str(error)


_EVERYTHING = {SCALARS: 0, TENSORS: 0}


@dataclass(frozen=True)
class RunRecord:
    """One run. Figures that its folder does not hold are missing.

    parameters: of the model, tied ones once. updates: done so far. dev: dev/loss, dev/bleu, dev/chrf of the best
    evaluation. tokens_per_second: source and target tokens without padding, over all updates. seconds: of training,
    evaluations and saves not counted. evaluations: by `<test set>.<checkpoint>` as evaluate.py names its files.
    signatures: sacreBLEU's, of the dev figures by metric. problems: what is wrong with the folder, in words; empty for
    a finished run. scalars: TensorBoard's points, (step, value) by tag. gradient_norms: by layer, as training recorded
    them.
    """

    folder: Path
    config: dict[str, Any]
    parameters: int | None = None
    updates: int | None = None
    dev: dict[str, float] = field(default_factory=dict)
    tokens_per_second: float | None = None
    seconds: float | None = None
    evaluations: dict[str, Evaluated] = field(default_factory=dict)
    signatures: dict[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    scalars: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    gradient_norms: list[GradientRecord] = field(default_factory=list)

    @property
    def largest_gradient_norm(self) -> float | None:
        """That of the update whose gradient was largest, before clipping."""
        return max((norm for _, norm in self.scalars.get("train/gradient_norm_max", [])), default=None)

    @property
    def largest_loss_rise(self) -> float | None:
        """The worst spike of the training loss, in nats per token; see gnmt.evaluation.run_records."""
        means, largest = (self.scalars.get(tag, []) for tag in ("train/loss", "train/loss_max"))
        return largest_loss_rise(means, largest)

    @property
    def skipped_updates(self) -> float | None:
        """Updates whose loss or gradient was not finite."""
        skipped = self.scalars.get("train/skipped_updates")
        return None if skipped is None else sum(number for _, number in skipped)


def find_runs(paths: Sequence[str]) -> list[Path]:
    """The run folders that the paths are or hold at any depth, sorted, each once; a run's folder has a config.json.

    By whatever paths or links one is named, it is one run.

    Raises InputError for a path that is no folder or holds no run.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise InputError(f"runs: {path} is not a folder; name the folders of runs, or one that holds them")
        runs = [path] if (path / "config.json").is_file() else runs_below(path)
        if not runs:
            raise InputError(f"runs: {path} holds no run: there is no config.json in it or below")
        for run in runs:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def runs_below(path: Path) -> list[Path]:
    """The folders with a config.json, sorted; links are followed, and each folder is looked at once."""
    runs, seen = [], set()
    for folder, subfolders, files in os.walk(path, followlinks=True):
        if (place := os.path.realpath(folder)) in seen:
            subfolders.clear()  # a link to a folder above it
            continue
        seen.add(place)
        runs += [Path(folder)] if "config.json" in files else []
    return sorted(runs)


def read_runs(folders: Sequence[Path]) -> tuple[list[RunRecord], list[str]]:
    """The runs whose config.json can be read, and in words why others are left out.

    Raises InputError where none is left.
    """
    records, left_out = [], []
    for folder in folders:
        try:
            records.append(read_run(folder))
        except InputError as error:
            left_out.append(f"left out: {error}")
    if not records:
        raise InputError("\n".join(["runs: there is none to compare", *left_out]))
    return records, left_out


def read_run(folder: Path) -> RunRecord:
    """Everything that is known of a run. Raises InputError where its config.json cannot be read."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except RecursionError:
        raise InputError(f"{folder / 'config.json'} cannot be read: it is nested too deep") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'config.json'} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{folder / 'config.json'} must hold an object, found {type(config).__name__}")
    problems: list[str] = []
    parameters, dev, best_step = None, {}, None
    try:
        best = read_checkpoint(folder / "best.pt", REQUIRED_ENTRIES)
        parameters, dev, best_step = count_parameters(best["model"])["total"], dict(best["best"]), best["step"]
    except InputError as error:
        missing = not (folder / "best.pt").exists()
        problems.append("no best.pt: nothing was evaluated yet" if missing else str(error))
    curves = read_curves(folder, problems)
    updates = max((step for step, _ in curves.scalars.get("train/learning_rate", [])), default=None)
    if updates is None:
        problems.append("no update is logged")
    elif max((step for step, _ in curves.scalars.get("best/bleu", [])), default=0) < updates:
        # What a run reports at its end, with the step of its last update.
        problems.append(f"not finished: stopped or still going after update {updates}")
    gradient_norms = read_gradient_norms(folder, problems)
    rates = dict(curves.scalars.get("train/tokens_per_second", []))
    seconds = dict(curves.scalars.get("train/seconds", []))
    rate = sum(rates.values()) / len(rates) if rates else None
    if rates and seconds.keys() >= rates.keys():
        rate = sum(rates[step] * seconds[step] for step in rates) / sum(seconds[step] for step in rates)
    return RunRecord(
        folder,
        config,
        parameters,
        updates,
        dev,
        tokens_per_second=rate,
        seconds=sum(seconds.values()) if seconds else None,
        evaluations=read_evaluations(folder / "translations", best_step, problems),
        signatures=curves.signatures,
        problems=tuple(problems),
        scalars=curves.scalars,
        gradient_norms=gradient_norms,
    )


@dataclass(frozen=True)
class Curves:
    """TensorBoard's points, (step, value) by tag, and the signatures of the dev figures by metric."""

    scalars: dict[str, list[tuple[int, float]]]
    signatures: dict[str, str]


def read_curves(folder: Path, problems: list[str]) -> Curves:
    """What the run told TensorBoard; what an interrupted run had reported beyond its checkpoint is left out."""
    logging.getLogger("tensorboard").setLevel(logging.WARNING)  # it tells of every file that it opens
    try:
        events = EventAccumulator(str(folder), size_guidance=_EVERYTHING)
        events.Reload()
        tags = events.Tags()
        scalars = {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in tags["scalars"]}
        signatures = {
            metric: events.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
            for metric in ("bleu", "chrf")
            if (tag := f"dev/signature/{metric}/text_summary") in tags["tensors"]
        }
    except Exception as error:  # damaged files lead TensorBoard's reader to errors of every kind
        problems.append(f"TensorBoard's events cannot be read ({type(error).__name__}: {error})")
        return Curves({}, {})
    return Curves(scalars, signatures)
