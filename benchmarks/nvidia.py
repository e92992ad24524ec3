"""Time updates of NVIDIA's GNMT v2 and of gnmt side by side, in one process and in turns.

python -m benchmarks.nvidia FOLDER [--size gnmt_128] [--device cuda] [--output FILE]

FOLDER is PyTorch/Translation/GNMT of github.com/NVIDIA/DeepLearningExamples. Both models have the same widths, layers,
vocabulary, dropout and batches: random subwords, all sentences of the same length. NVIDIA's update is that of its
trainer with `--math manual_fp16`, with its own FP16Optimizer, label smoothing and reading of the loss; on a CPU, fp32.
The packages apex and dllogger need not be installed, because this path does not call them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import Runner, timed_in_turns
from benchmarks.training import CLIP_NORM, LEARNING_RATE, SIZES, SMOOTHING, Step, TrainingWorkload, updates
from gnmt.batch import PAD_ID, Batch
from gnmt.device import choose_device

PRECISIONS = {"cuda": ("bf16", "fp16"), "cpu": ("fp32",)}
REPETITIONS, NUM_BATCHES = 5, 4


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="gnmt_128")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    given = parser.parse_args(arguments)
    if not (given.folder / "seq2seq" / "models" / "gnmt.py").exists():
        parser.error(
            f"{given.folder} has no seq2seq/models/gnmt.py: give PyTorch/Translation/GNMT of NVIDIA's repository"
        )
    device = choose_device(given.device)
    workload = TrainingWorkload(given.size, "equal", 0.2, NUM_BATCHES, 1, str(device))
    batches = workload.batches()
    runners: dict[str, Runner] = {"nvidia": updates(nvidia_step(given.folder, workload, device), batches)}
    for precision in PRECISIONS[device.type]:
        runners[precision] = updates(workload.step(precision, workload.model()), batches)
    seconds = timed_in_turns(runners, REPETITIONS, str(device))
    num_tokens = sum(batch.num_real_tokens for batch in batches)
    figures: list[dict[str, Any]] = [
        {
            "size": given.size,
            "system": name,
            "step_milliseconds": 1000 * median(times) / len(batches),
            "tokens_per_second": num_tokens / median(times),
            "ratio": median(seconds["nvidia"]) / median(times),
        }
        for name, times in seconds.items()
    ]
    for figure in figures:
        print(figure, flush=True)
    if given.output is not None:
        given.output.write_text(json.dumps({"figures": figures}, indent=2) + "\n", encoding="utf-8")


def nvidia_step(folder: Path, workload: TrainingWorkload, device: torch.device) -> Step:
    """Return a function that makes one update of NVIDIA's model, like `iterate` of its trainer."""
    sys.path.insert(0, str(folder))
    for name in ("dllogger", "apex", "apex.amp", "apex.amp._amp_state"):
        sys.modules.setdefault(name, ModuleType(name))
    sys.modules["apex"].amp = sys.modules["apex.amp"]  # type: ignore[attr-defined]
    sys.modules["apex.amp"]._amp_state = sys.modules["apex.amp._amp_state"]  # type: ignore[attr-defined]
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
        loss = criterion(output.view(-1, num_subwords), labels.ids_BT.T.reshape(-1))
        loss.item()
        loss /= len(batch.source.lengths_B)
        fp_optimizer.step(loss, optimizer, NoSchedule())
        return loss.detach()

    return step


class NoSchedule:
    """A schedule that keeps the learning rate."""

    def step(self) -> None:
        pass


if __name__ == "__main__":
    main()
