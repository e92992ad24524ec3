"""Time NVIDIA's GNMT v2 and gnmt side by side, in one process and in turns: updates, or greedy and beam search.

python -m benchmarks.nvidia FOLDER {training,search} [--size SIZE] [--device cuda] [--output FILE]

FOLDER is PyTorch/Translation/GNMT of github.com/NVIDIA/DeepLearningExamples. Both models have the same widths, layers,
vocabulary, dropout and batches: random subwords, all sentences of the same length. NVIDIA's update is that of its
trainer with `--math manual_fp16`, with its own FP16Optimizer, label smoothing and reading of the loss. NVIDIA's search
is that of its translator, with the model in fp16 and batch-first. Both searches take as many steps as the sources have
tokens, because EOS is suppressed. On a CPU, NVIDIA's code runs in fp32. The packages apex and dllogger need not be
installed, because these paths do not call them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks import decoding
from benchmarks.measuring import Runner, timed_in_turns
from benchmarks.training import CLIP_NORM, LEARNING_RATE, SIZES, SMOOTHING, Step, TrainingWorkload, updates
from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, Batch
from gnmt.device import choose_device
from gnmt.fileio import json_bytes, write_atomically
from gnmt.model.seq2seq import Seq2Seq

PRECISIONS = {"cuda": ("bf16", "fp16"), "cpu": ("fp32",)}
REPETITIONS = {"training": 5, "search": 3}
NUM_BATCHES = 4
DROPOUT = 0.2
BATCH_SIZES, BEAMS = (1, 32, 128, 512), (1, 5)
SOURCE_TOKENS = 25
SUPPRESSED_LOGIT = -3e4
"""Bias of EOS in NVIDIA's output layer, which fp16 represents."""


@dataclass(frozen=True)
class Figure:
    """One line of the results.

    Args:
        system: "nvidia", or the precision of gnmt.
        batch_size: Sentences of a batch.
        beam: Size of the beam; None for updates.
        milliseconds: Median time of an update, or of the search for a batch.
        tokens_per_second: Source and target tokens of updates, target tokens of search.
        ratio: Median time of NVIDIA's code divided by this system's.
        mib: Peak of the CUDA memory that an update needs beside weights and optimizer state, or that the search for a
            batch needs beside weights; None on a CPU. Gradients count for both systems, although NVIDIA's code
            allocates its fp32 gradients only once and gnmt allocates its own anew in each update.
    """

    system: str
    batch_size: int
    beam: int | None
    milliseconds: float
    tokens_per_second: float
    ratio: float
    mib: float | None


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("task", choices=("training", "search"))
    parser.add_argument("--size", help="default: gnmt_128 for training, gnmt for search")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    given = parser.parse_args(arguments)
    if not (given.folder / "seq2seq" / "models" / "gnmt.py").exists():
        parser.error(
            f"{given.folder} has no seq2seq/models/gnmt.py: give PyTorch/Translation/GNMT of NVIDIA's repository"
        )
    sizes = SIZES if given.task == "training" else decoding.SIZES
    size = given.size or ("gnmt_128" if given.task == "training" else "gnmt")
    if size not in sizes:
        parser.error(f"--size {size}: choose from {' '.join(sizes)}")
    make_importable(given.folder)
    figures: list[Figure] = []
    for figure in (training if given.task == "training" else search)(size, choose_device(given.device)):
        print(figure, flush=True)
        figures.append(figure)
        if given.output is not None:
            contents = {"size": size, "figures": [asdict(one) for one in figures]}
            write_atomically(given.output, json_bytes(contents))


def make_importable(folder: Path) -> None:
    """Let NVIDIA's package `seq2seq` be imported without apex and dllogger."""
    sys.path.insert(0, str(folder))
    for name in ("dllogger", "apex", "apex.amp", "apex.amp._amp_state"):
        sys.modules.setdefault(name, ModuleType(name))
    sys.modules["apex"].amp = sys.modules["apex.amp"]  # type: ignore[attr-defined]
    sys.modules["apex.amp"]._amp_state = sys.modules["apex.amp._amp_state"]  # type: ignore[attr-defined]


def training(size: str, device: torch.device) -> list[Figure]:
    """Time updates."""
    workload = TrainingWorkload(size, "equal", DROPOUT, NUM_BATCHES, 1, str(device))
    batches = workload.batches()
    nvidia_update, nvidia_optimizer = nvidia_step(workload, device)
    steps = {"nvidia": nvidia_update}
    steps |= {precision: workload.step(precision, workload.model()) for precision in PRECISIONS[device.type]}
    for step in steps.values():
        step(batches[0])  # creates the optimizer's state
    mib = {name: allocated_mib(partial(step, batches[0]), device) for name, step in steps.items()}
    if mib["nvidia"] is not None:
        mib["nvidia"] += gradient_mib(nvidia_optimizer)
    runners = {name: updates(step, batches) for name, step in steps.items()}
    seconds = timed_in_turns(runners, REPETITIONS["training"], str(device))
    num_tokens = sum(batch.num_real_tokens for batch in batches)
    return figures_of(seconds, SIZES[size].batch_size, None, NUM_BATCHES, num_tokens, mib)


def search(size: str, device: torch.device) -> Iterator[Figure]:
    """Time greedy and beam search, and yield the figures of one number of sentences and beam after another."""
    models: tuple[Seq2Seq, Any] | None = None  # gnmt's and NVIDIA's, which take seconds to build
    for batch_size, beam in product(BATCH_SIZES, BEAMS):
        num_batches = NUM_BATCHES if batch_size == 1 else 1
        workload = decoding.Workload(size, "equal", beam, batch_size, num_batches, SOURCE_TOKENS, 1, str(device))
        model, nvidias = models = models or (workload.model(), nvidia_model(workload, device))
        sources = workload.sources(model.source_embedding.num_embeddings)
        systems = {"nvidia": nvidia_search(workload, nvidias, device)}
        systems |= {precision: workload.system(precision, model) for precision in PRECISIONS[device.type]}
        runners: dict[str, Runner] = {name: partial(system, sources) for name, system in systems.items()}
        mib = {name: allocated_mib(runner, device) for name, runner in runners.items()}
        seconds = timed_in_turns(runners, REPETITIONS["search"], str(device))
        yield from figures_of(seconds, batch_size, beam, num_batches, sum(map(len, sources)), mib)


def figures_of(
    seconds: Mapping[str, list[float]],
    batch_size: int,
    beam: int | None,
    num_batches: int,
    num_tokens: int,
    mib: Mapping[str, float | None],
) -> list[Figure]:
    """Return one figure for each system.

    Args:
        seconds: Times of all repetitions by system.
        batch_size: Sentences of a batch.
        beam: Size of the beam; None for updates.
        num_batches: Batches of one repetition.
        num_tokens: Tokens of one repetition.
        mib: Memory by system.
    """
    medians = {name: median(times) for name, times in seconds.items()}
    return [
        Figure(
            name,
            batch_size,
            beam,
            milliseconds=1000 * time / num_batches,
            tokens_per_second=num_tokens / time,
            ratio=medians["nvidia"] / time,
            mib=mib[name],
        )
        for name, time in medians.items()
    ]


def allocated_mib(call: Runner, device: torch.device) -> float | None:
    """Return the peak of the memory that a call allocates on CUDA; None on a CPU."""
    if device.type != "cuda":
        return None
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def gradient_mib(optimizer: torch.optim.Optimizer) -> float:
    """Return the memory of the gradients that exist between updates."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return sum(parameter.grad.nbytes for parameter in parameters if parameter.grad is not None) / 2**20


def nvidia_step(workload: TrainingWorkload, device: torch.device) -> tuple[Step, torch.optim.Optimizer]:
    """Return a function that makes one update of NVIDIA's model, like `iterate` of its trainer, and its optimizer."""
    from seq2seq.models.gnmt import GNMT  # type: ignore[import-not-found]
    from seq2seq.train.fp_optimizers import FP16Optimizer, FP32Optimizer  # type: ignore[import-not-found]
    from seq2seq.train.smoothing import LabelSmoothing  # type: ignore[import-not-found]

    num_layers, width, num_subwords, _, _ = SIZES[workload.size]
    torch.manual_seed(workload.seed)
    model = GNMT(num_subwords, width, num_layers, workload.dropout, share_embedding=False).to(device).train()
    criterion = LabelSmoothing(PAD_ID, SMOOTHING).to(device)
    if device.type == "cuda":
        fp_optimizer = FP16Optimizer(model, CLIP_NORM)
        optimizer = torch.optim.Adam(fp_optimizer.fp32_params, LEARNING_RATE)
    else:
        fp_optimizer = FP32Optimizer(model, CLIP_NORM)
        optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)

    def step(batch: Batch) -> Tensor:
        batch = batch.to(device)
        source, target, labels = batch.source, batch.target_input, batch.labels
        output = model(source.ids_BT.T, source.lengths_B, target.ids_BT.T)
        loss: Tensor = criterion(output.view(-1, num_subwords), labels.ids_BT.T.reshape(-1))
        loss.item()
        loss /= len(batch.source.lengths_B)
        fp_optimizer.step(loss, optimizer, NoSchedule())
        return loss.detach()

    return step, optimizer


def nvidia_model(workload: decoding.Workload, device: torch.device) -> Any:
    """Return NVIDIA's model as its translator builds it, in fp16 on CUDA, with EOS suppressed."""
    from seq2seq.models.gnmt import GNMT

    _, num_layers, width, num_subwords = decoding.SIZES[workload.size]
    torch.manual_seed(workload.seed)
    model = GNMT(num_subwords, width, num_layers, batch_first=True, share_embedding=False).to(device).eval()
    with torch.no_grad():
        model.decoder.classifier.classifier.bias[EOS_ID] = SUPPRESSED_LOGIT
    return model.half() if device.type == "cuda" else model


def nvidia_search(
    workload: decoding.Workload, model: Any, device: torch.device
) -> Callable[[decoding.Sources], object]:
    """Return a function that translates sources like `evaluate` of NVIDIA's translator. model: see `nvidia_model`."""
    from seq2seq.inference.beam_search import SequenceGenerator  # type: ignore[import-not-found]

    # The first of max_seq_len tokens is BOS.
    generator = SequenceGenerator(model, workload.beam, max_seq_len=workload.source_tokens + 1)
    find = generator.greedy_search if workload.beam == 1 else generator.beam_search
    first_N1 = torch.full((workload.batch_size * workload.beam, 1), BOS_ID, device=device)

    @torch.no_grad()
    def translate(sources: decoding.Sources) -> list[Tensor]:
        found = []
        for start in range(0, len(sources), workload.batch_size):
            chunk = torch.tensor(sources[start : start + workload.batch_size]).to(device)
            lengths_B = torch.full((len(chunk),), chunk.shape[1], device=device)
            context = [model.encode(chunk, lengths_B), lengths_B, None]
            found.append(find(len(chunk), first_N1, context)[0].cpu())
        return found

    return translate


class NoSchedule:
    """A schedule that keeps the learning rate."""

    def step(self) -> None:
        pass


if __name__ == "__main__":
    main()
