"""State and metrics of a training run.

`TrainState` holds the counters of a run. `TrainMetrics` sums loss, tokens and skipped updates between two log lines.
`FirstEstimate` logs early how long the run will take. `describe_batch` describes a batch whose update was skipped.
`GradientNorms` records the gradient norm of each layer, and `UpdateRatios` the size of updates against that of the
weights. Full checkpoints hold the first two.
"""

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
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from gnmt.data.batching import LoaderState, LocalBatch
from gnmt.fileio import write_atomically
from gnmt.logs import format_duration
from gnmt.reporting.tensorboard import Reporter
from gnmt.training.schedule import Quality

log = logging.getLogger(__name__)

ESTIMATE_SECONDS = 10.0
"""Seconds of updates after which `FirstEstimate` logs how long the run will take."""

NONFINITE_FILE = "nonfinite_batch.tsv"
"""File in the run folder: number, source and target of each pair of a batch with a non-finite loss or gradient."""
NUM_PAIRS_SHOWN = 3
"""Number of pairs whose text is in the error message about such a batch."""
NUM_PAIRS_LISTED = 20
"""Number of pairs whose number is in that message."""
NUM_CHARACTERS_SHOWN = 200
"""Characters of each side of a pair in that message."""

GRADIENT_NORMS_FILE = "gradient_norms.jsonl"
"""File in the run folder: a line {"update": 10, "norms": {"encoder.1": 0.3, ...}} per record, null if not finite."""
GRADIENT_NORM_TAG = "train/gradient_norm_by_layer"
"""TensorBoard tag; the name of the layer follows after a slash."""
UPDATE_RATIO_TAG = "train/update_ratio_by_layer"
"""TensorBoard tag of `UpdateRatios`; the name of the layer follows after a slash."""
LAYER_ORDER = ("embeddings", "encoder", "attention", "decoder", "output")
LAYER_NUMBER = re.compile(r"\.(\d+)(?:\.|$)")

CLIPPING_DELTA = "dev/clipping_delta"
"""TensorBoard tag of the bound to which a model with `clipping` clipped activations in an evaluation."""
BestMetric = Literal["dev/bleu", "dev/chrf", "dev/loss"]
"""The dev metric that chooses best.pt."""
ZERO_BLEU = 0.005
"""A BLEU below this number is logged as 0.00."""

GradientRecord = tuple[int, dict[str, float | None]]
"""The number of an update, counted from 1, and the norm of its gradient in each layer before clipping."""


@dataclass
class TrainState:
    """Counters and results of the training loop, besides weights, optimizer state and loader state.

    Metrics are dictionaries by TensorBoard tag, such as `dev/bleu`.

    Args:
        best_metric: The metric by which evaluations are compared.
        step: Number of updates done, skipped ones included.
        best_step: The update whose weights best.pt holds.
        best: Dev metrics of these weights; empty if there is no best.pt.
        evaluations: Step and dev metrics of each evaluation so far.
        evaluation_due: True if the weights of this step must be evaluated before the next update: those of
            `initialize_from`, or those whose evaluation a signal has interrupted.
        tokens_seen: Source and target tokens without padding of all batches so far.
        tokens_at_evaluations: This number at each evaluation, by its step.
    """

    best_metric: BestMetric = "dev/bleu"
    step: int = 0
    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    evaluations: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    evaluation_due: bool = False
    tokens_seen: int = 0
    tokens_at_evaluations: dict[int, int] = field(default_factory=dict)

    def quality(self, metrics: Mapping[str, float]) -> Quality:
        """Return a tuple that is larger for better metrics: `best_metric` decides, and dev loss breaks ties.

        A loss that is not a number is worse than any other. For a model with `clipping`, a smaller delta decides before
        `best_metric` does, so that best.pt gets the smallest delta of the run.
        """
        loss = metrics["dev/loss"]
        negative_loss = -math.inf if math.isnan(loss) else -loss
        main = negative_loss if self.best_metric == "dev/loss" else metrics[self.best_metric]
        return (-metrics.get(CLIPPING_DELTA, 0.0), main, negative_loss)

    def qualities(self) -> list[tuple[int, Quality]]:
        """Return step and quality of each evaluation so far."""
        return [(step, self.quality(metrics)) for step, metrics in self.evaluations]

    def is_better_than_best(self, metrics: Mapping[str, float]) -> bool:
        """Return whether the metrics are better than those of best.pt, or there is no best.pt."""
        return not self.best or self.quality(metrics) > self.quality(self.best)

    def needs_final_evaluation(self) -> bool:
        """Return whether the current step has not been evaluated, or its metrics are better than those of best.pt.

        A run that has reached its limit is finished only when its last weights are evaluated.
        """
        if self.evaluation_due or not self.evaluations:
            return True
        step, metrics = self.evaluations[-1]
        return step != self.step or self.is_better_than_best(metrics)

    def record_evaluation(self, metrics: dict[str, float]) -> bool:
        """Record the dev metrics of the current step, and return whether they are the best so far.

        They are compared with all earlier evaluations, including those whose best.pt could not be written or is lost.
        """
        # A resumed run repeats the evaluation of its step if best.pt could not be written or is lost.
        self.evaluations = [(step, other) for step, other in self.evaluations if step != self.step]
        self.evaluations.append((self.step, metrics))
        self.tokens_at_evaluations[self.step] = self.tokens_seen
        self.evaluation_due = False
        return self.stale_evaluations == 0

    @property
    def stale_evaluations(self) -> int:
        """The number of evaluations since the best one."""
        qualities = [quality for _, quality in self.qualities()]
        return len(qualities) - 1 - qualities.index(max(qualities)) if qualities else 0

    @property
    def zero_bleu_evaluations(self) -> int:
        """The number of last evaluations in a row with a dev BLEU of 0.00."""
        count = 0
        for _, metrics in reversed(self.evaluations):
            if metrics["dev/bleu"] >= ZERO_BLEU:
                break
            count += 1
        return count

    def state_dict(self) -> dict[str, Any]:
        """Return the fields by name, as a checkpoint holds them."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @classmethod
    def from_checkpoint(cls, contents: Mapping[str, Any]) -> TrainState:
        """Return the state in the contents of a full checkpoint."""
        return cls(**{item.name: contents[item.name] for item in fields(cls)})


# Metrics between two log lines


class MetricSums(NamedTuple):
    """The device tensors of a `TrainMetrics` as Python numbers.

    Args:
        loss: Summed over the updates that were applied.
        gradient_norm: Summed over these updates.
        target_tokens: Summed over these updates.
        updates: Number of these updates.
        longest_skip: Largest number of updates skipped in a row, counting those before the last log line.
        last_skipped: Index of the last of these updates since the last log line, or -1.
        largest_loss: Largest loss per target token of an applied update.
        largest_gradient_norm: Largest gradient norm of an applied update.
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
class TrainMetrics:
    """Sums over the updates since the last log line.

    Tensors stay on the device, in fp64, so that the host does not wait for it in every update. A checkpoint holds the
    sums, so the first log line of a resumed run covers all updates since the previous one.

    Args:
        sums_4: Loss, gradient norm, target tokens and number of the updates that were applied.
        longest_skip_1: See `MetricSums.longest_skip`.
        last_skipped_1: See `MetricSums.last_skipped`.
        largest_2: Largest loss per target token and largest gradient norm, which show spikes that means hide.
        statistics_M: `Objective.statistics_M`, summed over the updates that were applied.
        loader_states: Loader state before the batch of each update.
        real_tokens: Source and target tokens without padding.
        padded_tokens: Source and target tokens with padding, an estimate if there are several ranks.
        seconds_before: Seconds that were counted before the clock last started.
        seconds_waited: Seconds of waiting for data.
        running_since: Time when the clock last started; None while it is paused.
    """

    sums_4: Tensor
    longest_skip_1: Tensor
    last_skipped_1: Tensor
    largest_2: Tensor
    statistics_M: Tensor
    loader_states: list[LoaderState] = field(default_factory=list)
    real_tokens: int = 0
    padded_tokens: int = 0
    seconds_before: float = 0.0
    seconds_waited: float = 0.0
    running_since: float | None = None

    @classmethod
    def begin(cls, device: torch.device, num_statistics: int = 0) -> TrainMetrics:
        """Return empty sums with a stopped clock, which the first `paused` block starts at its end.

        Args:
            device: The device of the loss.
            num_statistics: Number of statistics of the objective.
        """
        zeros_4, zero_1, zeros_M = (
            torch.zeros(size, dtype=torch.float64, device=device) for size in (4, 1, num_statistics)
        )
        return cls(
            sums_4=zeros_4,
            longest_skip_1=zero_1,
            last_skipped_1=zero_1 - 1,
            largest_2=torch.full_like(zeros_4[:2], -math.inf),  # the loss of an objective may be negative
            statistics_M=zeros_M,
        )

    def count(self, local_batch: LocalBatch) -> None:
        """Count the tokens of a global batch, with its padding as estimated from the local batch."""
        real = sum(batch.num_real_tokens for batch in local_batch.to_compute)
        padded = sum(batch.num_padded_tokens for batch in local_batch.to_compute)
        global_tokens = local_batch.source_tokens + local_batch.target_tokens
        self.real_tokens += global_tokens
        self.padded_tokens += round(padded * (global_tokens / real))

    def add(
        self,
        loss: Tensor,
        norm: Tensor,
        target_tokens: int,
        applied: Tensor,
        skipped_in_a_row: Tensor,
        statistics_M: Tensor,
    ) -> None:
        """Add an update to the sums. Its loader state must be the last of `loader_states`.

        Args:
            loss: Summed loss of the global batch; a scalar on the device, as are the other tensors.
            norm: Norm of its gradient before clipping.
            target_tokens: Number of its target tokens with EOS.
            applied: Bool, False for a skipped update.
            skipped_in_a_row: Number of skipped updates since the last one that was applied.
            statistics_M: Statistics of the objective for this update.
        """
        num_applied = applied.double()
        one_4 = torch.stack([loss.double(), norm.double(), num_applied * target_tokens, num_applied])
        self.sums_4 += torch.where(applied, one_4, 0.0)
        self.statistics_M += torch.where(applied, statistics_M.double(), 0.0)
        one_2 = torch.stack([one_4[0] / target_tokens, one_4[1]])
        self.largest_2 = torch.where(applied, torch.maximum(self.largest_2, one_2), self.largest_2)
        is_longest = skipped_in_a_row > self.longest_skip_1
        self.longest_skip_1 = torch.where(is_longest, skipped_in_a_row.double(), self.longest_skip_1)
        self.last_skipped_1 = torch.where(is_longest, len(self.loader_states) - 1.0, self.last_skipped_1)

    def sums(self) -> MetricSums:
        """Return the tensors as numbers. Only this method waits for the device."""
        sums_8 = torch.cat([self.sums_4, self.longest_skip_1, self.last_skipped_1, self.largest_2])
        return MetricSums(*sums_8.tolist())

    def scalars(self, sums: MetricSums, seconds: float) -> dict[str, float]:
        """Return the metrics by TensorBoard tag. Means and maxima are left out if no update was applied."""
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
        """Return the wall-clock seconds since the last log line, without pauses."""
        running = 0.0 if self.running_since is None else time.perf_counter() - self.running_since
        return self.seconds_before + running

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside this context as waiting for data."""
        start = time.perf_counter()
        yield
        self.seconds_waited += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock inside this context."""
        self.seconds_before, self.running_since = self.seconds(), None
        yield
        self.running_since = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Return the fields by name, as a checkpoint holds them."""
        state = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "running_since"}
        return state | {
            "loader_states": [tuple(loader_state) for loader_state in self.loader_states],
            "seconds_before": self.seconds(),
        }

    @classmethod
    def from_checkpoint(cls, state: Mapping[str, Any], device: torch.device) -> TrainMetrics:
        """Return the metrics that `state_dict` returned, with a stopped clock, which the next `paused` block starts."""
        values: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor) else value for name, value in state.items()
        }
        values["loader_states"] = [LoaderState(*loader_state) for loader_state in state["loader_states"]]
        return cls(**values)


def format_metrics(scalars: Mapping[str, float], of_objective: Mapping[str, float]) -> str:
    """Return metrics as text for a log line. Both arguments are given by TensorBoard tag.

    Args:
        scalars: Loss, gradient norm and so on.
        of_objective: `Objective.scalars`.
    """
    loss, norm = (scalars.get(tag, math.nan) for tag in ("train/loss", "train/gradient_norm"))
    further = "".join(
        f"{tag.removeprefix('train/').replace('_', ' ')} {value:.4g}, " for tag, value in of_objective.items()
    )
    return (
        f"loss {loss:.3f}, {further}gradient norm {norm:.2f}, learning rate {scalars['train/learning_rate']:.2e}, "
        f"{scalars['train/tokens_per_second']:.0f} tokens/s, {100 * scalars['train/padding_fraction']:.1f}% padding"
    )


class FirstEstimate:
    """Log once how long the run will take, if its first log line is more than `ESTIMATE_SECONDS` away.

    The first update is not timed: kernels are chosen and memory is allocated in it.
    """

    def __init__(self, log_every_steps: int) -> None:
        self._log_every_steps = log_every_steps
        self._start: tuple[int, float] | None = None
        self._done = False

    def after_update(self, step: int, last_step: int) -> None:
        """Log the estimate if it is due.

        Args:
            step: Number of updates done.
            last_step: The last update of the run.
        """
        now = time.perf_counter()
        if self._start is None:
            self._start = (step, now)
            return
        first_step, start = self._start
        if self._done or now - start < ESTIMATE_SECONDS:
            return
        self._done = True
        if step - first_step < self._log_every_steps:
            seconds_left = (last_step - step) * (now - start) / (step - first_step)
            log.info("update %d/%d: about %s left", step, last_step, format_duration(seconds_left))


# Batches with a non-finite loss or gradient


def describe_batch(pairs: Sequence[tuple[int, str, str]], loader_state: LoaderState, folder: Path) -> str:
    """Write all pairs of a batch to `NONFINITE_FILE`, and describe the batch for an error message.

    Args:
        pairs: Number, source text and target text of each pair; see `BatchStream.pairs_at`.
        loader_state: Loader state before the batch.
        folder: The run folder.

    Returns:
        Lines with the index of the batch, the numbers of its pairs, the path of the file and the first pairs.
    """
    numbers = ", ".join(str(number) for number, _, _ in pairs[:NUM_PAIRS_LISTED])
    more = f" and {len(pairs) - NUM_PAIRS_LISTED} more" if len(pairs) > NUM_PAIRS_LISTED else ""
    lines = [
        f"batch {loader_state.batches} of epoch {loader_state.epoch} (both counted from 0), "
        f"{len(pairs)} pairs of the preprocessed text: {numbers}{more}"
    ]
    path = folder / NONFINITE_FILE
    try:
        rows = ("\t".join((str(number), *(one_line(text) for text in texts))) for number, *texts in pairs)
        write_atomically(path, "".join(row + "\n" for row in rows).encode())
        lines.append(f"all of them are in {path}; the first are")
    except OSError as error:
        lines.append(f"{path} cannot be written ({error.strerror}); the first pairs are")
    for number, source, target in pairs[:NUM_PAIRS_SHOWN]:
        lines.append(f"{number}: {one_line(source)[:NUM_CHARACTERS_SHOWN]} | {one_line(target)[:NUM_CHARACTERS_SHOWN]}")
    return "\n  ".join(lines)


def one_line(text: str) -> str:
    """Return the text with each run of white space replaced by one space."""
    return " ".join(text.split())


# Gradient norms and update ratios of layers


def layer_name(name: str) -> str:
    """Return the layer of a model parameter, given its name.

    The layers are:
        embeddings: all embedding tables, including one that is tied to the output layer.
        encoder.1, encoder.2, ..., decoder.1, decoder.2, ...: the layers from the bottom. A layer includes its own
            attention over the source, which Transformer and convolutional decoders have in every layer.
        attention: an attention that all decoder layers share.
        output: the projection to the vocabulary.
        encoder.other, decoder.other: parameters without a layer number, such as a projection or a last normalization.
    """
    module, _, rest = name.partition(".")
    if module.endswith("embedding"):
        return "embeddings"
    if module == "output_layer":
        return "output"
    if rest.startswith("attention."):
        return "attention"
    if rest.startswith("bottom."):  # GNMT's decoder keeps its bottom layer apart from the upper ones
        return f"{module}.1"
    number = LAYER_NUMBER.search(name)
    if number is None:
        return f"{module}.other"
    return f"{module}.{int(number[1]) + (2 if rest.startswith('upper.') else 1)}"


def layer_sort_key(layer: str) -> tuple[int, float, str]:
    """Return a sort key that orders layers from input to output: encoder.2 before encoder.10 and encoder.other."""
    module, _, number = layer.partition(".")
    index = LAYER_ORDER.index(module) if module in LAYER_ORDER else len(LAYER_ORDER)
    return index, float(number) if number.isdigit() else math.inf, layer


def parameters_by_layer(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the parameters of each layer, layers from input to output; a tied parameter is listed once."""
    layers: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        layers.setdefault(layer_name(name), []).append(parameter)
    return {name: layers[name] for name in sorted(layers, key=layer_sort_key)}


class GradientNorms:
    """Record the norm of the gradient in each layer, before clipping, to a file and to TensorBoard.

    Norms stay on the device until `write`, so that no update waits for them. If the file cannot be written, recording
    stops and training continues.

    Args:
        model: The model whose gradients are recorded.
        every_steps: Number of updates between two records; None for no records and no cost.
        folder: The run folder, which holds `GRADIENT_NORMS_FILE`.
        reporter: Writes the scalars `GRADIENT_NORM_TAG`/<layer>.
    """

    def __init__(self, model: nn.Module, every_steps: int | None, folder: Path, reporter: Reporter) -> None:
        self.every_steps = every_steps
        self.path = folder / GRADIENT_NORMS_FILE
        self.reporter = reporter
        self.layers = {} if every_steps is None else parameters_by_layer(model)
        self._step = 0
        self._pending: list[tuple[int, Tensor]] = []

    def start_after(self, step: int) -> None:
        """Count updates from `step` on, and delete records of later updates, which an interrupted run wrote."""
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

    def record(self) -> None:
        """Compute the norms of this update if it is due for a record.

        Call this once in every update, when its gradients are complete and not yet clipped.
        """
        self._step += 1
        if self.every_steps is not None and self._step % self.every_steps == 0:
            norms = [_norm_of(parameters) for parameters in self.layers.values()]
            self._pending.append((self._step, torch.stack(norms)))

    def write(self) -> None:
        """Write the norms since the last call to the file and to TensorBoard. Only this method waits for the device."""
        if not self._pending:
            return
        rows = torch.stack([norms for _, norms in self._pending]).tolist()
        updates = [update for update, _ in self._pending]
        self._pending.clear()
        lines = []
        for update, row in zip(updates, rows, strict=True):
            norms = {layer: norm if math.isfinite(norm) else None for layer, norm in zip(self.layers, row, strict=True)}
            lines.append(json.dumps({"update": update, "norms": norms}) + "\n")
            for layer, norm in norms.items():
                if norm is not None:
                    self.reporter.scalar(f"{GRADIENT_NORM_TAG}/{layer}", norm, update)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(lines)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        log.error("%s cannot be written (%s): no more gradient norms are recorded", self.path, error)
        self.every_steps = None


class UpdateRatios:
    """Measure the norm of an update divided by the norm of the weights before it, in each layer.

    Ratios stay on the device until `scalars`.

    Args:
        model: The model that is trained.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = parameters_by_layer(model)
        self._ratios_L: Tensor | None = None

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Measure the optimizer update that is made inside this context.

        The weights are copied before it, which any optimizer allows; the optimizer's state would need a formula for
        each. The copy costs as much as a small part of an update and is made only where a log line follows. The
        activations are freed by then, so it does not raise the memory's peak.
        """
        copies = [[weight.detach().clone() for weight in weights] for weights in self.layers.values()]
        norms_L = torch.stack([nn.utils.get_total_norm(tensors) for tensors in copies])
        yield
        for tensors, weights in zip(copies, self.layers.values(), strict=True):
            torch._foreach_sub_(tensors, [weight.detach() for weight in weights])
        self._ratios_L = torch.stack([nn.utils.get_total_norm(tensors) for tensors in copies]) / norms_L

    def scalars(self) -> dict[str, float]:
        """Return the ratios of the last measured update by TensorBoard tag, once; this waits for the device.

        A skipped update has ratios of 0. Layers whose ratio is not finite, as all weights are 0, are left out.
        """
        if self._ratios_L is None:
            return {}
        ratios, self._ratios_L = self._ratios_L.tolist(), None
        found = zip(self.layers, ratios, strict=True)
        return {f"{UPDATE_RATIO_TAG}/{layer}": ratio for layer, ratio in found if math.isfinite(ratio)}


def _norm_of(parameters: Sequence[nn.Parameter]) -> Tensor:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return nn.utils.get_total_norm(gradients).float() if gradients else parameters[0].new_zeros((), dtype=torch.float)


def _update_of(line: bytes) -> int | None:
    """Return the update number of a record, or None if an interrupted write has cut the line off."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return record["update"] if isinstance(record, Mapping) and isinstance(record.get("update"), int) else None


def read_gradient_norms(folder: Path, problems: list[str]) -> list[GradientRecord]:
    """Return the records of a run in their order, or an empty list if it has none.

    Args:
        folder: The run folder.
        problems: List to which a message is appended if the file cannot be read.
    """
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
