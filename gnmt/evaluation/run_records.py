"""Read the runs that compare.py compares: each run's config, best checkpoint, TensorBoard events and evaluations.

`find_runs` finds run folders, `read_run` reads one. A damaged or missing file does not stop the comparison: the run's
record lacks its values, and `problems` names the file.
"""

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
from gnmt.config.run_folder import CONFIG, LOG
from gnmt.errors import InputError
from gnmt.evaluation.metrics import METRIC_TITLES
from gnmt.training.train_metrics import GradientRecord, read_gradient_norms

_ALL_EVENTS = {SCALARS: 0, TENSORS: 0}  # 0: keep every event instead of a sample


@dataclass(frozen=True)
class EvaluationRecord:
    """Results that evaluate.py has written.

    Args:
        scores: Metrics in percent by their names in `METRIC_TITLES`: BLEU, chrF, and those others that the file has.
        signatures: The signature of each metric.
        by_length: For each range of source lengths: from_words, to_words (None without limit), num_sentences, bleu.
        sentences_per_second: Speed of the translation.
        translations_file: The translations, one per line.
        segment_means: Means of the segment scores of other programs, by their name.
    """

    scores: dict[str, float]
    signatures: dict[str, str]
    by_length: list[dict[str, Any]]
    sentences_per_second: float
    translations_file: Path
    segment_means: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRecord:
    """Settings and results of one run; a value is None or empty if the folder does not hold it.

    Args:
        folder: The run folder.
        config: The resolved config.
        parameters: Number of parameters of the model; tied ones count once.
        updates: Number of updates so far.
        dev: Dev metrics of the best evaluation by TensorBoard tag, such as dev/loss and dev/bleu.
        tokens_per_second: Source and target tokens without padding, over all updates.
        seconds: Training time without evaluations and checkpoints.
        evaluations: Results of evaluate.py, by `<test set>-<hash of the text>.<checkpoint><variant>`.
        signatures: The signature of each dev metric.
        problems: Messages about missing, damaged or unfinished parts; empty for a finished run.
        scalars: TensorBoard's points (step, value) by tag.
        gradient_norms: Gradient norms by layer.
    """

    folder: Path
    config: dict[str, Any]
    parameters: int | None = None
    updates: int | None = None
    dev: dict[str, float] = field(default_factory=dict)
    tokens_per_second: float | None = None
    seconds: float | None = None
    evaluations: dict[str, EvaluationRecord] = field(default_factory=dict)
    signatures: dict[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    scalars: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    gradient_norms: list[GradientRecord] = field(default_factory=list)

    @property
    def largest_gradient_norm(self) -> float | None:
        """The largest gradient norm of any update, before clipping."""
        return max((norm for _, norm in self.scalars.get("train/gradient_norm_max", [])), default=None)

    @property
    def largest_loss_rise(self) -> float | None:
        """The largest spike of the training loss, in nats per token; see the function `largest_loss_rise`."""
        means, largest = (self.scalars.get(tag, []) for tag in ("train/loss", "train/loss_max"))
        return largest_loss_rise(means, largest)

    @property
    def skipped_updates(self) -> float | None:
        """The number of updates whose loss or gradient was not finite."""
        skipped = self.scalars.get("train/skipped_updates")
        return None if skipped is None else sum(number for _, number in skipped)


def largest_loss_rise(means: Sequence[tuple[int, float]], largest: Sequence[tuple[int, float]]) -> float | None:
    """Return the largest rise of an update's loss above the lowest mean before it, at least 0, in nats per token.

    Batches differ, so the result is above 0 in stable training too. It is None before the second logging interval.

    Args:
        means: Last step and mean loss of each logging interval.
        largest: Last step and largest loss of an update of each logging interval.
    """
    largest_at = dict(largest)
    lowest, rise = None, None
    for step, mean in means:
        if lowest is not None and step in largest_at:
            rise = max(0.0 if rise is None else rise, largest_at[step] - lowest)
        lowest = mean if lowest is None else min(lowest, mean)
    return rise


def mean_by_layer(records: Sequence[GradientRecord], num_updates: int) -> dict[str, float]:
    """Return each layer's mean gradient norm over the records of the first `num_updates` updates.

    Norms that are not finite (None) are left out.
    """
    norms: dict[str, list[float]] = {}
    for update, by_layer in records:
        for layer, norm in by_layer.items():
            if update <= num_updates and norm is not None:
                norms.setdefault(layer, []).append(norm)
    return {layer: statistics.fmean(values) for layer, values in norms.items()}


# Runs


def find_runs(paths: Sequence[str]) -> list[Path]:
    """Return the run folders at or below the paths, sorted within each path.

    A run folder holds a config.json; before the first update, it holds a train.log and no folder.

    A run that is reached by several paths or links is returned once. Raises InputError for a path that is no folder or
    holds no run.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise InputError(f"runs: {path} is not a folder; name the folders of runs, or one that holds them")
        runs = [path] if (path / CONFIG).is_file() else _runs_below(path)
        if not runs:
            raise InputError(f"runs: {path} holds no run: there is no {CONFIG} in it or below; name another folder")
        for run in runs:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _runs_below(path: Path) -> list[Path]:
    """Return the run folders below `path`, sorted; links are followed, and each folder is read once."""
    runs, seen = [], set()
    for folder, subfolders, files in os.walk(path, followlinks=True):
        if (real_path := os.path.realpath(folder)) in seen:
            subfolders.clear()  # a link to a folder above it
            continue
        seen.add(real_path)
        runs += [Path(folder)] if CONFIG in files or (LOG in files and not subfolders) else []
    return sorted(runs)


def read_runs(folders: Sequence[Path]) -> tuple[list[RunRecord], list[str]]:
    """Return the records of all runs whose config.json can be read, and a message for each of the others.

    Raises InputError if there is no record.
    """
    records, left_out = [], []
    for folder in folders:
        try:
            records.append(read_run(folder))
        except InputError as error:
            left_out.append(f"left out: {error}")
    if not records:
        raise InputError("\n".join(["runs: none of them can be read", *left_out]))
    return records, left_out


def read_run(folder: Path) -> RunRecord:
    """Read a run folder; raises InputError if its config.json cannot be read."""
    if not (folder / CONFIG).exists() and (folder / LOG).exists():
        raise InputError(
            f"{folder} has no {CONFIG}, only {LOG}: the run was stopped before its first update, while the data was "
            "preprocessed, or is still there; the same command starts it"
        )
    config = read_config(folder / CONFIG)
    problems: list[str] = []
    parameters, dev, best_step = None, {}, None
    try:
        best = read_checkpoint(folder / "best.pt", REQUIRED_ENTRIES)
        parameters, dev, best_step = count_parameters(best["model"])["total"], dict(best["best"]), best["step"]
    except InputError as error:
        missing = not (folder / "best.pt").exists()
        problems.append("no best.pt: the dev set was not evaluated yet" if missing else str(error))
    curves = read_curves(folder, problems)
    updates = max((step for step, _ in curves.scalars.get("train/learning_rate", [])), default=None)
    if updates is None:
        problems.append("no update is logged")
    elif max((step for step, _ in curves.scalars.get("result/dev_bleu", [])), default=0) < updates:
        # A finished run has reported result/dev_bleu with the step of its last update.
        problems.append(f"not finished: stopped or still running after update {updates}")
    gradient_norms = read_gradient_norms(folder, problems)
    rates = dict(curves.scalars.get("train/tokens_per_second", []))
    seconds = dict(curves.scalars.get("train/seconds", []))
    num_tokens = sum(rate * seconds.get(step, 0.0) for step, rate in rates.items())
    num_seconds = sum(seconds.values())
    return RunRecord(
        folder,
        config,
        parameters,
        updates,
        dev,
        tokens_per_second=num_tokens / num_seconds if num_seconds else None,
        seconds=num_seconds or None,
        evaluations=read_evaluations(folder / "translations", best_step, problems),
        signatures=curves.signatures,
        problems=tuple(problems),
        scalars=curves.scalars,
        gradient_norms=gradient_norms,
    )


def read_config(path: Path) -> dict[str, Any]:
    """Return the config of a run; raises InputError if the file is not a JSON object."""
    try:
        config = json.loads(path.read_bytes())
    except RecursionError:
        raise InputError(f"{path} cannot be read: it is nested too deep") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} must hold an object, found {type(config).__name__}")
    return config


@dataclass(frozen=True)
class Curves:
    """TensorBoard's points (step, value) by tag, and the signature of each dev metric."""

    scalars: dict[str, list[tuple[int, float]]]
    signatures: dict[str, str]


def read_curves(folder: Path, problems: list[str]) -> Curves:
    """Read a run's TensorBoard events; points that a resumed run has replaced are left out.

    Args:
        folder: The run folder.
        problems: A message is appended if the events cannot be read.
    """
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it logs every file, and a warning for a resumed run
    try:
        events = EventAccumulator(str(folder), size_guidance=_ALL_EVENTS)
        events.Reload()
        tags = events.Tags()
        scalars = {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in tags["scalars"]}
        signatures = {
            str(metric): events.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
            for metric in METRIC_TITLES
            if (tag := f"about/signature/{metric}/text_summary") in tags["tensors"]
        }
    except Exception as error:  # TensorBoard's reader raises all kinds of errors for damaged files
        problems.append(f"TensorBoard's events cannot be read ({type(error).__name__}: {error})")
        return Curves({}, {})
    return Curves(scalars, signatures)


# Evaluations


def read_evaluations(folder: Path, best_step: int | None, problems: list[str]) -> dict[str, EvaluationRecord]:
    """Return the results that evaluate.py has written to a folder, by file name without the hash of the checkpoint.

    If a checkpoint such as last.pt was evaluated at several steps, the largest step counts.

    Args:
        folder: The run's `translations/`.
        best_step: Step of the run's best.pt, None if it cannot be read. Results of an earlier best.pt are left out.
        problems: A message is appended for each file that is damaged or left out.
    """
    newest: dict[str, tuple[int, EvaluationRecord]] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            contents = json.loads(path.read_bytes())
            evaluated = _parse_evaluated(contents, path.with_suffix(".txt"))
            steps = contents["step"] if isinstance(contents["step"], list) else [contents["step"]]
            step = max(_checked(value, int, "step") for value in steps)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            problems.append(f"{path} is no result of evaluate.py ({_describe(error)})")
            continue
        name = path.stem.rpartition(".")[0]  # without the hash of the checkpoint
        is_of_best = "best" in name.split(".")[1:]
        if is_of_best and best_step is not None and step != best_step:
            problems.append(
                f"{path} is left out: it holds scores of the best.pt of update {step}, but best.pt is now of update "
                f"{best_step}: run evaluate.py on it again, and delete this file"
            )
        elif name not in newest or newest[name][0] <= step:
            newest[name] = (step, evaluated)
    return {name: evaluated for name, (_, evaluated) in newest.items()}


def _parse_evaluated(contents: Any, translations_file: Path) -> EvaluationRecord:
    """Check the contents of a file of evaluate.py.

    Raises KeyError for a missing key and ValueError for a value of the wrong type.
    """
    contents = _checked(contents, Mapping, "the file")
    signatures = _checked(contents["signatures"], Mapping, "signatures")
    rows = _checked(contents["by_length"], list, "by_length")
    return EvaluationRecord(
        {
            metric: _number(contents[metric], metric)
            for metric in METRIC_TITLES
            if metric in contents or metric in ("bleu", "chrf")
        },
        {str(metric): _checked(signature, str, f"signatures.{metric}") for metric, signature in signatures.items()},
        [_parse_row(row, f"by_length[{index}]") for index, row in enumerate(rows)],
        _number(contents["sentences_per_second"], "sentences_per_second"),
        translations_file,
    )


def _parse_row(row: Any, key: str) -> dict[str, Any]:
    row = _checked(row, Mapping, key)
    to_words = row["to_words"]
    return {
        "from_words": _checked(row["from_words"], int, f"{key}.from_words"),
        "to_words": None if to_words is None else _checked(to_words, int, f"{key}.to_words"),
        "num_sentences": _checked(row["num_sentences"], int, f"{key}.num_sentences"),
        "bleu": _number(row["bleu"], f"{key}.bleu"),
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


def _describe(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return f"it lacks {error.args[0]}" if isinstance(error, KeyError) else str(error)
