"""Time training updates of the plain baseline and of gnmt, in one process and in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from benchmarks.measuring import Column, Runner, in_own_process, peak_resident_mib, resident_mib, timed_in_turns
from benchmarks.training_baseline import PlainTranslator, baseline_step, plain_name
from gnmt.batch import BOS_ID, PAD_ID, Batch
from gnmt.data.batching import batch_of
from gnmt.device import choose_device, choose_precision, return_freed_memory
from gnmt.model.attention import AdditiveAttention
from gnmt.model.recurrent.encoder import LSTMEncoder
from gnmt.model.recurrent.gnmt_decoder import GNMTDecoder
from gnmt.model.seq2seq import Seq2Seq
from gnmt.training.objective import LabelSmoothedCrossEntropy, Objective
from gnmt.training.optimizer import Stage, StagedOptimizer
from gnmt.training.schedule import Constant

BASELINE = "baseline"
LENGTHS = ("equal", "mixed")
# Without tf32, a setting of the process that would also apply to the baseline.
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
SMOOTHING, LEARNING_RATE, CLIP_NORM = 0.1, 1e-4, 5.0
# Largest relative difference of loss and gradient norm between the two implementations in fp32. Rounding grows with
# depth and width: 1e-6 of the norm at 4+4 layers of 512, 1.4e-5 at 4+4 and 2.3e-5 at 8+8 of 1024 with 32,000 subwords.
LARGEST_DIFFERENCE = 5e-5
BYTES_PER_PARAMETER = 16  # weights, gradients and Adam's two moments in fp32

Step = Callable[[Batch], object]


class Updates(Protocol):
    """A model and batches to train it on."""

    @property
    def device(self) -> str: ...

    def model(self) -> Seq2Seq: ...

    def batches(self) -> list[Batch]: ...

    def step(self, name: str, model: Seq2Seq) -> Step:
        """Return a call that makes one update, by the baseline or by gnmt in a precision."""
        ...


class Size(NamedTuple):
    """Model and batch sizes: `num_layers` in the encoder and in the decoder, `tokens` on each side of a pair."""

    num_layers: int
    width: int
    num_subwords: int
    batch_size: int
    tokens: int


SIZES = {
    "gnmt": Size(4, 1024, 32_000, 64, 25),
    "gnmt_128": Size(4, 1024, 32_000, 128, 25),
    "gnmt_256": Size(4, 1024, 32_000, 256, 25),
    "gnmt_512": Size(4, 1024, 32_000, 512, 25),
    "gnmt_8": Size(8, 1024, 32_000, 128, 25),
    "middle": Size(4, 512, 8_000, 64, 20),
    "small": Size(2, 256, 10_000, 32, 15),
    "tiny": Size(2, 16, 200, 4, 5),
}


@dataclass(frozen=True)
class TrainingWorkload:
    """A model with random weights and batches of random subwords.

    Args:
        size: A key of SIZES.
        lengths: `equal`: all sentences have the size's length, with EOS; `mixed`: log-normal lengths around that.
        dropout: Probability on the input of every layer.
        num_batches: Updates of one measurement.
    """

    size: str
    lengths: str
    dropout: float
    num_batches: int
    seed: int
    device: str

    def model(self) -> Seq2Seq:
        """Return the model in training mode, on the device."""
        torch.manual_seed(self.seed)
        size = SIZES[self.size]
        encoder = LSTMEncoder(size.width, size.width, size.num_layers, dropout=self.dropout)
        attention = AdditiveAttention(size.width, encoder.output_size, size.width)
        decoder = GNMTDecoder(size.width, size.width, size.num_layers, attention, dropout=self.dropout)
        model = Seq2Seq(encoder, decoder, size.num_subwords, size.num_subwords, size.width)
        return model.to(choose_device(self.device)).train()

    def loss(self) -> LabelSmoothedCrossEntropy:
        loss = LabelSmoothedCrossEntropy(SIZES[self.size].num_subwords, (PAD_ID, BOS_ID), SMOOTHING)
        return loss.to(choose_device(self.device))

    def batches(self) -> list[Batch]:
        """Return batches of random subwords."""
        rng = np.random.default_rng(self.seed)
        size = SIZES[self.size]
        batches = []
        for _ in range(self.num_batches):
            lengths = np.full((2, size.batch_size), size.tokens)
            if self.lengths == "mixed":
                lengths = (lengths * np.exp(0.3 * rng.standard_normal(lengths.shape))).round().astype(int).clip(2)
            sides = [[rng.integers(4, size.num_subwords, length - 1) for length in side] for side in lengths]
            batches.append(batch_of(sides[0], sides[1], np.arange(size.batch_size)))
        return batches

    @property
    def label(self) -> str:
        return f"{self.size}_{self.lengths}"

    def call(self, name: str) -> Runner:
        """Return a call that makes one update of a new model."""
        step, batch = self.step(name, self.model()), self.batches()[0]
        return lambda: step(batch)

    def step(self, name: str, model: Seq2Seq) -> Step:
        """Return a call that makes one update, by the baseline or by gnmt in a precision, with its own optimizer."""
        if name == BASELINE:
            return baseline_step(model, self.loss().uniform_V, SMOOTHING, LEARNING_RATE, CLIP_NORM)
        return project_step(model, self.loss(), name)


def updates(step: Step, batches: list[Batch]) -> Runner:
    """Return a call that makes an update on each batch."""
    return lambda: [step(batch) for batch in batches]


def project_step(model: Seq2Seq, loss: LabelSmoothedCrossEntropy, precision_name: str) -> Step:
    """Return a call that makes an update as gnmt.training.trainer.Trainer does, with fused Adam."""
    device = loss.uniform_V.device
    return_freed_memory(sum(parameter.numel() for parameter in model.parameters()), device)
    precision = choose_precision(precision_name, device)
    objective = Objective(model, loss)

    def make_optimizer(params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(params, LEARNING_RATE, fused=True)

    stages = [Stage(0, make_optimizer, Constant())]
    staged_optimizer = StagedOptimizer(list(objective.parameters()), stages, CLIP_NORM, precision)

    def step(batch: Batch) -> Tensor:
        staged_optimizer.begin_update(0, [])
        with precision.autocast():
            loss_sum, _ = objective(batch.to(device))
        staged_optimizer.scaler.scale(loss_sum / batch.num_labels).backward()
        staged_optimizer.apply(loss_sum.detach())
        return loss_sum.detach()

    return step


@dataclass(frozen=True)
class TrainingFigure:
    """One line of the table. Rates use the median time over the repetitions.

    Args:
        tokens_per_second: Source and target tokens with EOS, without padding.
        ratio: Median time of the baseline divided by this system's.
        utilization: Rate of operations (see `workload_flops`) relative to the fastest matrix product of the precision.
        memory_mib: Peak memory of a separate process minus weights, gradients and optimizer state, or None.
    """

    size: str
    lengths: str
    system: str
    seconds: list[float]
    step_milliseconds: float
    tokens_per_second: float
    ratio: float
    utilization: float
    memory_mib: float | None


COLUMNS = (
    Column("size", "size", 8),
    Column("lengths", "lengths", 7),
    Column("system", "system", 9),
    Column("step ms", "step_milliseconds", 9, ".1f"),
    Column("tokens/s", "tokens_per_second", 10, ".0f"),
    Column("ratio", "ratio", 7, ".2f"),
    Column("utilization", "utilization", 12, ".1%"),
    Column("memory MiB", "memory_mib", 11, ".0f"),
)


def measure(workload: TrainingWorkload, precisions: list[str], repetitions: int, memory: bool) -> list[TrainingFigure]:
    """Time the baseline and each precision in turns, and a matrix product of the same precision with each."""
    names = [BASELINE, *precisions]
    batches = workload.batches()
    product_of = {name: f"product for {name}" for name in names}
    runners: dict[str, Runner] = {}
    for name in names:
        runners[product_of[name]] = matrix_product("fp32" if name == BASELINE else name, workload.device)
        runners[name] = updates(workload.step(name, workload.model()), batches)
    seconds = timed_in_turns(runners, repetitions, workload.device)
    del runners
    product_flops = matrix_product_flops(workload.device)
    fastest_product = {name: product_flops / min(seconds[product_of[name]]) for name in names}
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    num_tokens, flops = sum(batch.num_real_tokens for batch in batches), sum(map(workload_flops(workload), batches))
    return [
        TrainingFigure(
            workload.size,
            workload.lengths,
            name,
            seconds[name],
            1000 * medians[name] / len(batches),
            num_tokens / medians[name],
            medians[BASELINE] / medians[name],
            flops / medians[name] / fastest_product[name],
            in_own_process(memory_mib, workload, name) if memory else None,
        )
        for name in names
    ]


def workload_flops(workload: TrainingWorkload) -> Callable[[Batch], int]:
    """Return a function that counts the floating-point operations of an update on a batch.

    A matrix product takes 2 operations per element and token forward, and twice that backward. Counted for real tokens:
    the LSTMs, with 4 * width * (input + width) elements each; projections, scores and context of attention; the output
    layer. Not counted: embeddings, elementwise operations, the optimizer, padding and recomputation.
    """
    num_layers, width, num_subwords, _, _ = SIZES[workload.size]
    lstm_of = {inputs: 4 * width * (inputs + width) for inputs in (width, 2 * width)}
    # The bottom encoder layer has two directions, the second reads both; upper decoder layers read the context.
    encoder = 2 * lstm_of[width] + lstm_of[2 * width] + (num_layers - 2) * lstm_of[width] + width * width
    decoder = lstm_of[width] + (num_layers - 1) * lstm_of[2 * width] + width * width + width * num_subwords

    def flops(batch: Batch) -> int:
        source_B, target_B = batch.source.lengths_B, batch.labels.lengths_B
        pairs = int((source_B * target_B).sum())
        return 6 * (int(source_B.sum()) * encoder + int(target_B.sum()) * decoder + pairs * 2 * width)

    return flops


def matrix_product(precision: str, device_name: str) -> Callable[[], object]:
    """Return a call that multiplies two square matrices, large enough for the device's full rate."""
    device = choose_device(device_name)
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    dtype = dtypes[choose_precision(precision, device).name]
    width = product_width(device_name)
    left, right = (torch.ones(width, width, dtype=dtype, device=device) for _ in range(2))
    left @ right
    return lambda: left @ right


def matrix_product_flops(device_name: str) -> int:
    """Return the floating-point operations of the call of `matrix_product`."""
    return 2 * product_width(device_name) ** 3


def product_width(device_name: str) -> int:
    """Return the width of the matrices of `matrix_product`."""
    return 8192 if choose_device(device_name).type == "cuda" else 2048


def memory_mib(workload: Updates, name: str) -> float:
    """Return the peak memory of updates in this process, minus weights, gradients, optimizer state and libraries."""
    device = choose_device(workload.device)
    on_cuda = device.type == "cuda"
    tiny = TrainingWorkload("tiny", "equal", 0.0, 1, 1, workload.device)
    warm_up = tiny.step(name, tiny.model())  # loads libraries and starts threads
    warm_up(tiny.batches()[0])
    before = torch.cuda.memory_allocated(device) / 2**20 if on_cuda else resident_mib()
    model = workload.model()
    fixed = BYTES_PER_PARAMETER * sum(parameter.numel() for parameter in model.parameters()) / 2**20
    step = workload.step(name, model)
    if name == BASELINE:
        del model  # the baseline trains a copy
    for batch in workload.batches()[:1] * 2:  # the second update has the optimizer's state
        step(batch)
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if on_cuda else peak_resident_mib()
    return peak - before - fixed


def differences(workload: TrainingWorkload) -> tuple[float, float]:
    """Compare gnmt with the baseline in fp32, without dropout, on one batch.

    Returns:
        Relative difference of the loss, and norm of the difference of all gradients divided by the gradient norm.
    """
    exact = TrainingWorkload(workload.size, "mixed", 0.0, 1, workload.seed, workload.device)
    model, loss = exact.model(), exact.loss()
    device = loss.uniform_V.device
    [batch] = (batch.to(device) for batch in exact.batches())
    plain = PlainTranslator(model).to(device).train()
    plain_loss = plain(batch, loss.uniform_V, SMOOTHING)
    plain_loss.backward()
    project_loss, _ = Objective(model, loss)(batch)
    project_loss.backward()
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    pairs = [(parameter.grad, gradients[plain_name(name)]) for name, parameter in model.named_parameters()]
    difference = torch.stack([(ours - plains).norm() for ours, plains in pairs]).norm()
    norm = torch.stack([plains.norm() for _, plains in pairs]).norm()
    of_loss = ((project_loss - plain_loss) / plain_loss).abs().detach()
    return float(of_loss), float(difference / norm)


def check_equality(workload: TrainingWorkload) -> str:
    """Return a sentence with the differences; raise AssertionError if the two compute something else."""
    of_loss, of_gradients = differences(workload)
    assert max(of_loss, of_gradients) < LARGEST_DIFFERENCE, f"{workload.size}: {of_loss}, {of_gradients}"
    return (
        f"{workload.size}: fp32 without dropout differs from the baseline by {of_loss:.0e} of the loss and "
        f"{of_gradients:.0e} of the gradient's norm"
    )
