"""Metrics of training: progress, interval means, gradient norms, and reports of non-finite batches."""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gnmt.data.batching import LoaderState, LocalBatch
from gnmt.fileio import write_atomically
from gnmt.logs import format_duration
from gnmt.reporting.tensorboard import Reporter

log = logging.getLogger(__name__)
ESTIMATE_SECONDS = 10.0


@dataclass
class TrainState:
    """What the loop remembers: it is saved with every checkpoint.

    step: updates done, skipped ones counted. best: the dev result of the best evaluation, by its name.
    stale_evaluations: those since then. evaluations: the step and the dev BLEU of each so far. evaluation_due: whether
    this step's evaluation was broken off by a signal, so that going on begins with it.
    """

    step: int = 0
    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    stale_evaluations: int = 0
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    evaluation_due: bool = False

    def end_is_due(self) -> bool:
        """Whether a run that ends with this step has still to be evaluated, or to write the best.pt that it earned."""
        if self.evaluation_due or not self.best:
            return True
        if not self.evaluations:
            return False  # a checkpoint from before they were listed
        step, bleu = self.evaluations[-1]
        return step != self.step or bleu > self.best["dev/bleu"]

    def take_evaluation(self, bleu: float) -> bool:
        """Notes the dev BLEU of this step, and whether it is the best of all, those counted whose best.pt was lost."""
        before = [(step, other) for step, other in self.evaluations if step != self.step]  # it may be a repetition
        best_before = max([other for _, other in before] + [self.best.get("dev/bleu", -math.inf)])
        self.evaluations = [*before, (self.step, bleu)]
        self.evaluation_due = False
        improved = bleu > best_before
        self.stale_evaluations = 0 if improved else self.stale_evaluations + 1
        return improved

    def state_dict(self) -> dict[str, Any]:
        """By name, as a checkpoint holds it."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @classmethod
    def from_checkpoint(cls, contents: Mapping[str, Any]) -> TrainState:
        """That of a checkpoint; what an older one does not hold is as at the start."""
        return cls(**{item.name: contents[item.name] for item in fields(cls) if item.name in contents})


class FirstEstimate:
    """Says once how long the run will take, where its first log line is far: ten seconds after the first update.

    That one is left out: kernels are chosen and memory is taken in it.
    """

    def __init__(self, log_every_steps: int) -> None:
        self._log_every_steps = log_every_steps
        self._began: tuple[int, float] | None = None
        self._said = False

    def after_update(self, step: int, last_step: int) -> None:
        """step: updates done; last_step: those of the whole run. The first log line says the same."""
        now = time.perf_counter()
        first_step, start = self._began = self._began or (step, now)
        if self._said or step == first_step or now - start < ESTIMATE_SECONDS:
            return
        self._said = True
        if step - first_step < self._log_every_steps:
            seconds_left = (last_step - step) * (now - start) / (step - first_step)
            log.info("update %d/%d: about %s left", step, last_step, format_duration(seconds_left))


def format_metrics(scalars: Mapping[str, float]) -> str:
    """The figures of an interval for its log line, by their TensorBoard tags; without a mean where none was made."""
    loss, norm = (scalars.get(tag, math.nan) for tag in ("train/loss", "train/gradient_norm"))
    return (
        f"loss {loss:.3f}, gradient norm {norm:.2f}, learning rate {scalars['train/learning_rate']:.2e}, "
        f"{scalars['train/tokens_per_second']:.0f} tokens/s, {100 * scalars['train/padding_fraction']:.1f}% padding"
    )


class IntervalSums(NamedTuple):
    """An interval's tensors as numbers.

    loss, gradient_norm, target_tokens: summed over the updates that were made. updates: how many these are.
    longest_skip: the most updates in a row that were skipped, those before the interval counted. last_skipped: the
    place in the interval of the last one of these, or -1. largest_loss, largest_gradient_norm: of one update that was
    made, the loss per target token.
    """

    loss: float
    gradient_norm: float
    target_tokens: float
    updates: float
    longest_skip: float
    last_skipped: float
    largest_loss: float
    largest_gradient_norm: float


@dataclass
class IntervalMetrics:
    """Sums since the last log line; those that depend on the device stay on it, so that a step never waits for it.

    sums_4: loss, gradient norm, target tokens and number of the updates that were made. largest_2: of these the largest
    loss per target token and the largest gradient norm, in which spikes show that means hide. loader_states: where in the
    data each update's batch begins. seconds_waited: for data. A checkpoint between two log lines holds them too.
    """

    sums_4: Tensor
    longest_skip_1: Tensor
    last_skipped_1: Tensor
    largest_2: Tensor
    loader_states: list[LoaderState] = field(default_factory=list)
    real_tokens: int = 0
    padded_tokens: int = 0
    seconds_before: float = 0.0
    seconds_waited: float = 0.0
    running_since: float | None = None

    @classmethod
    def begin(cls, device: torch.device) -> IntervalMetrics:
        """An empty interval, whose clock starts at the end of its first pause."""
        zeros_4, zeros_2, zero_1 = (torch.zeros(size, dtype=torch.float64, device=device) for size in (4, 2, 1))
        return cls(zeros_4, longest_skip_1=zero_1, last_skipped_1=zero_1 - 1, largest_2=zeros_2)

    def count(self, share: LocalBatch) -> None:
        """Takes in the tokens of a global batch; all of it is taken to be padded as this process's share is."""
        real = sum(batch.num_real_tokens for batch in share.to_compute)
        padded = sum(batch.num_padded_tokens for batch in share.to_compute)
        global_tokens = share.source_tokens + share.target_tokens
        self.real_tokens += global_tokens
        self.padded_tokens += round(padded * (global_tokens / real))

    def add(self, loss: Tensor, norm: Tensor, target_tokens: int, made: Tensor, skipped_in_a_row: Tensor) -> None:
        """Takes in an update, whose loader state is the last of `loader_states`. All but target_tokens: device scalars."""
        made_or_0 = made.double()
        one_4 = torch.stack([loss.double(), norm.double(), made_or_0 * target_tokens, made_or_0])
        self.sums_4 += torch.where(made, one_4, 0.0)
        one_2 = torch.stack([one_4[0] / target_tokens, one_4[1]])
        self.largest_2 = torch.where(made, torch.maximum(self.largest_2, one_2), self.largest_2)
        is_longest = skipped_in_a_row > self.longest_skip_1
        self.longest_skip_1 = torch.where(is_longest, skipped_in_a_row.double(), self.longest_skip_1)
        self.last_skipped_1 = torch.where(is_longest, len(self.loader_states) - 1.0, self.last_skipped_1)

    def sums(self) -> IntervalSums:
        """What the device has counted. The one place where the host waits for it."""
        return IntervalSums(
            *torch.cat([self.sums_4, self.longest_skip_1, self.last_skipped_1, self.largest_2]).tolist()
        )

    def scalars(self, sums: IntervalSums, seconds: float) -> dict[str, float]:
        """The figures by their TensorBoard tags; without a mean where no update was made."""
        scalars = {
            "train/skipped_updates": len(self.loader_states) - round(sums.updates),
            "train/seconds": seconds,
            "train/tokens_per_second": self.real_tokens / seconds,
            "train/data_wait_fraction": self.seconds_waited / seconds,
            "train/padding_fraction": 1 - self.real_tokens / self.padded_tokens,
        }
        if sums.updates:
            scalars["train/loss"] = sums.loss / sums.target_tokens
            scalars["train/gradient_norm"] = sums.gradient_norm / sums.updates
            scalars["train/loss_max"] = sums.largest_loss
            scalars["train/gradient_norm_max"] = sums.largest_gradient_norm
        return scalars

    def seconds(self) -> float:
        """Wall clock without pauses."""
        running = 0.0 if self.running_since is None else time.perf_counter() - self.running_since
        return self.seconds_before + running

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent inside is spent on waiting for data."""
        start = time.perf_counter()
        yield
        self.seconds_waited += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside is none of training's."""
        self.seconds_before, self.running_since = self.seconds(), None
        yield
        self.running_since = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """By name, as a checkpoint holds it."""
        state = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "running_since"}
        return state | {"loader_states": [tuple(one) for one in self.loader_states], "seconds_before": self.seconds()}

    @classmethod
    def from_checkpoint(cls, state: Mapping[str, Any], device: torch.device) -> IntervalMetrics:
        """That of a checkpoint; its clock goes on at the end of the next pause. What an older one lacks begins anew."""
        values: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor) else value for name, value in state.items()
        }
        values = {"largest_2": cls.begin(device).largest_2} | values
        return cls(**values | {"loader_states": [LoaderState(*one) for one in state["loader_states"]]})


NONFINITE_FILE = "nonfinite_batch.tsv"
_NUM_SHOWN = 3
_NUM_NAMED = 20
_SHOWN_LETTERS = 200


def describe_batch(pairs: Sequence[tuple[int, str, str]], loader_state: LoaderState, folder: Path) -> str:
    """The batch's place, its pairs' numbers and its first sentences; all of them go to a file in the folder.

    pairs: number, source and target of each; see `BatchStream.pairs_at`.
    """
    numbers = ", ".join(str(number) for number, _, _ in pairs[:_NUM_NAMED])
    more = f" and {len(pairs) - _NUM_NAMED} more" if len(pairs) > _NUM_NAMED else ""
    lines = [
        f"batch {loader_state.batches} of epoch {loader_state.epoch} (both counted from 0), "
        f"{len(pairs)} pairs of the preprocessed text: {numbers}{more}"
    ]
    path = folder / NONFINITE_FILE
    try:
        rows = ("\t".join((str(number), *(one_line(text) for text in texts))) for number, *texts in pairs)
        write_atomically(path, "".join(row + "\n" for row in rows).encode())
        lines.append(f"all of them are in {path}; it begins with")
    except OSError as error:
        lines.append(f"{path} could not be written ({error.strerror}); it begins with")
    for number, source, target in pairs[:_NUM_SHOWN]:
        lines.append(f"{number}: {one_line(source)[:_SHOWN_LETTERS]} | {one_line(target)[:_SHOWN_LETTERS]}")
    return "\n  ".join(lines)


def one_line(text: str) -> str:
    """The text with tabs and line breaks as spaces."""
    return " ".join(text.split())


GRADIENT_NORMS_FILE = "gradient_norms.jsonl"
"""A line {"update": 10, "norms": {"encoder.1": 0.3, …}} for each record, with null for what was not finite."""

GradientRecord = tuple[int, dict[str, float | None]]
"""An update, counted from 1, and its gradient's norm in each layer, before clipping."""


_ORDER = ("embeddings", "encoder", "attention", "decoder", "output")


def layer_sort_key(layer: str) -> tuple[int, float, str]:
    """Sorts the names of layers as the data passes them: encoder.2 before encoder.10 and encoder.other."""
    part, _, number = layer.partition(".")
    place = _ORDER.index(part) if part in _ORDER else len(_ORDER)
    return place, float(number) if number.isdigit() else math.inf, layer


def read_gradient_norms(folder: Path, problems: list[str]) -> list[GradientRecord]:
    """The records of a run, in their order; none where it kept none. Appends to problems what cannot be read."""
    path = folder / GRADIENT_NORMS_FILE
    records: list[GradientRecord] = []
    if not path.exists():
        return records
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            norms = {str(layer): None if norm is None else float(norm) for layer, norm in record["norms"].items()}
            records.append((int(record["update"]), norms))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problems.append(f"{path}:{len(records) + 1} is no record of gradient norms ({error!r})")
    return records


GRADIENT_NORM_TAG = "train/gradient_norm_by_layer"

_NUMBER = re.compile(r"\.(\d+)(?:\.|$)")


def layer_name(name: str) -> str:
    """The layer of the model's parameter of that name.

    encoder.1, encoder.2 … from the bottom, and so decoder.1 …: a layer has all that repeats with it, its own attention
    to the source included (Transformer, convolutional). attention: the one that layers share. embeddings: all tables,
    also one that is the output layer's weight. output: the layer to the vocabulary. encoder.other, decoder.other: what
    no number in the name assigns to a layer, such as a projection or a last normalization.
    """
    part, _, rest = name.partition(".")
    if part.endswith("embedding"):
        return "embeddings"
    if part == "output_layer":
        return "output"
    if rest.startswith("attention."):
        return "attention"
    if rest.startswith("bottom."):  # of GNMT's decoder, which keeps the layers above it apart
        return f"{part}.1"
    number = _NUMBER.search(name)
    if number is None:
        return f"{part}.other"
    return f"{part}.{int(number[1]) + (2 if rest.startswith('upper.') else 1)}"


def parameters_by_layer(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters of each layer, from the embeddings up to the output; tied ones once."""
    layers: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        layers.setdefault(layer_name(name), []).append(parameter)
    return {name: layers[name] for name in sorted(layers, key=layer_sort_key)}


class GradientNorms:
    """Records the norms of the whole batch's gradient, before clipping, and writes them when it is told to.

    Until then they stay on the device, so that no update waits for them. every_steps: updates between records; None for
    none, which costs nothing. folder: the run's, with `GRADIENT_NORMS_FILE`; TensorBoard gets `GRADIENT_NORM_TAG`/<layer>.
    """

    def __init__(self, model: nn.Module, every_steps: int | None, folder: Path, reporter: Reporter) -> None:
        self.every_steps = every_steps
        self.path = folder / GRADIENT_NORMS_FILE
        self.reporter = reporter
        self.layers = {} if every_steps is None else parameters_by_layer(model)
        self._step = 0
        self._pending: list[tuple[int, Tensor]] = []

    def begin(self, step: int) -> None:
        """The next update is the one after that; what an interrupted run had written of later ones is dropped."""
        self._step = step
        if not self.path.exists():
            return
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if (update := _update_of(line)) is not None and update <= step]
            if kept != lines:
                write_atomically(self.path, b"".join(kept))
        except OSError as error:
            self._give_up(error)

    def take(self) -> None:
        """Once in every update, when its gradients are whole; keeps their norms where it is one to record."""
        self._step += 1
        if self.every_steps is not None and self._step % self.every_steps == 0:
            norms = [_norm_of(parameters) for parameters in self.layers.values()]
            self._pending.append((self._step, torch.stack(norms)))

    def write(self) -> None:
        """Writes what was taken since the last time. The one place where the host waits for it."""
        if not self._pending:
            return
        rows = torch.stack([norms for _, norms in self._pending]).tolist()
        updates = [update for update, _ in self._pending]
        self._pending.clear()
        lines = []
        for update, row in zip(updates, rows, strict=True):
            finite = {
                layer: norm if math.isfinite(norm) else None for layer, norm in zip(self.layers, row, strict=True)
            }
            lines.append(json.dumps({"update": update, "norms": finite}) + "\n")
            for layer, norm in finite.items():
                if norm is not None:
                    self.reporter.scalar(f"{GRADIENT_NORM_TAG}/{layer}", norm, update)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(lines)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """A full disk costs the records, and not the run."""
        log.error("%s cannot be written (%s): no more gradient norms are recorded", self.path, error)
        self.every_steps = None


def _norm_of(parameters: Sequence[nn.Parameter]) -> Tensor:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return nn.utils.get_total_norm(gradients).float() if gradients else parameters[0].new_zeros((), dtype=torch.float)


def _update_of(line: bytes) -> int | None:
    """The update that a line is of; None for one that was cut off."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return record["update"] if isinstance(record, Mapping) and isinstance(record.get("update"), int) else None
