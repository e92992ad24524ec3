"""What a run says before its first step."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from gnmt.data.prepared import Prepared
from gnmt.training.trainer import Trainer
from gnmt.types import Batch, counted

log = logging.getLogger(__name__)


def announce(trainer: Trainer, prepared: Prepared, folder: Path) -> None:
    """Logs what the run is about to do: size, memory, data, updates, device, precision."""
    model, options, stream = trainer.objective.model, trainer.options, trainer.stream
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    size = trainer.group.size
    updates = trainer.last_step - trainer.progress.step
    log.info("run folder: %s", folder)
    log.info(
        "data: %s in %s, %d and %d pieces, about %s an epoch of at most %d tokens",
        *(counted(len(prepared.store), "pair", comma=True), prepared.folder),
        *(prepared.tokenizers.source.vocabulary_size, prepared.tokenizers.target.vocabulary_size),
        *(counted(len(stream), "update"), options.batch_tokens),
    )
    log.info(
        "model: %s parameters; memory: %s for weights, gradients and optimiser, %s more for the largest batch",
        f"{num_parameters:,}",
        in_megabytes(state_bytes(trainer)),
        in_megabytes(activation_bytes(trainer, stream.largest_microbatch())),
    )
    log.info(
        "training: %s%s (%.1f epochs) on %s in %s%s",
        counted(updates, "update", comma=True),
        f" from update {trainer.progress.step:,}" if trainer.progress.step else "",
        updates / len(stream),
        trainer.device,
        trainer.precision.name,
        f", by {size} processes of about {options.batch_tokens // size:,} tokens each" if size > 1 else "",
    )


def state_bytes(trainer: Trainer) -> int:
    """Weights and gradients, what the optimiser keeps for each weight, and the averaged weights."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in trainer.objective.parameters())
    group = trainer.optimisation.optimizer.param_groups[0]
    moments = 2 if "betas" in group else int(bool(group.get("momentum")))
    return weights * (2 + moments + (trainer.average is not None))


def activation_bytes(trainer: Trainer, batch: Batch) -> int:
    """What one forward pass keeps for its backward pass, found by running it; the random state stays as it was."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    trainer.objective.train()
    devices = [trainer.device] if trainer.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        trainer.precision.autocast(),
    ):
        loss_sum, _ = trainer.objective(batch.to(trainer.device))
    del loss_sum
    weights = {parameter.untyped_storage().data_ptr() for parameter in trainer.objective.parameters()}
    return sum(size for pointer, size in sizes.items() if pointer not in weights)


def in_megabytes(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / 2**20:,.0f} MB"
