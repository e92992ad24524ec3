"""Memory of a training run: estimates for the log, and the largest microbatch that fits.

`choose_microbatch_tokens` implements trainer.microbatch_tokens=auto.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gnmt.batch import Batch
from gnmt.device import is_out_of_memory
from gnmt.errors import InputError

if TYPE_CHECKING:
    from gnmt.training.trainer import Trainer

log = logging.getLogger(__name__)

SEARCHED_DEVICES = ("cuda",)
"""Types of devices on which the largest microbatch is searched. A system that runs out of memory itself writes pages to
the disk, or ends the process, before an allocation fails."""

SPARE_FRACTION = 20
"""The search leaves one part in this number of a GPU's memory unused, because later batches have other shapes."""


def estimate_state_bytes(trainer: Trainer) -> int:
    """Return the bytes of weights, gradients, optimizer state and averaged weights."""
    return 2 * weight_bytes(trainer) + moment_bytes(trainer) + (trainer.average is not None) * weight_bytes(trainer)


def weight_bytes(trainer: Trainer) -> int:
    """Return the bytes of the weights."""
    return sum(parameter.numel() * parameter.element_size() for parameter in trainer.objective.parameters())


def moment_bytes(trainer: Trainer) -> int:
    """Return the bytes of the optimizer's moments, which the first update allocates."""
    group = trainer.staged_optimizer.optimizer.param_groups[0]
    return weight_bytes(trainer) * (2 if "betas" in group else int(bool(group.get("momentum"))))


def measure_activation_bytes(trainer: Trainer, batch: Batch) -> int:
    """Return the bytes that a forward pass over the batch keeps for its backward pass.

    The forward pass is run. The random state is restored afterwards.
    """
    sizes: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        loss_sum = trial_loss(trainer, batch)
    del loss_sum
    weights = {parameter.untyped_storage().data_ptr() for parameter in trainer.objective.parameters()}
    return sum(size for pointer, size in sizes.items() if pointer not in weights)


def trial_loss(trainer: Trainer, batch: Batch) -> Tensor:
    """Return the summed loss of a batch in training mode, and restore the random state."""
    trainer.objective.train()
    devices = [trainer.device] if trainer.device.type == "cuda" else []
    with torch.random.fork_rng(devices), trainer.precision.autocast():
        loss_sum: Tensor = trainer.objective(batch.to(trainer.device))[0]
    return loss_sum


# The largest microbatch that fits


def choose_microbatch_tokens(trainer: Trainer) -> None:
    """Choose the number of tokens of a microbatch and set it in the trainer and in its stream.

    On a GPU it is the first number of batch_tokens, a half of it, a quarter and so on with which forward and backward
    pass of the largest microbatch fit into memory, on every rank. A run that resumes begins with the number of its
    checkpoint. On a CPU it is batch_tokens. All ranks must call this before the first batch is taken.

    Raises:
        InputError: The longest pair alone does not fit.
    """
    recorded, limit = trainer.microbatch_tokens, trainer.options.batch_tokens
    tokens, reason = limit, "a CPU's memory is not searched"
    if trainer.device.type in SEARCHED_DEVICES:
        found = largest_that_fits(trainer, min(recorded or limit, limit))
        tokens = min(trainer.ranks.gather(found))
        reason = f"fits into the memory of {trainer.device}"
        if tokens == recorded:
            reason = f"as in the checkpoint, {reason}"
    trainer.microbatch_tokens = tokens
    trainer.stream.limit_microbatches(tokens)
    if trainer.ranks.is_rank_0:
        log.info("trainer.microbatch_tokens=auto: at most %s tokens at a time (%s)", f"{tokens:,}", reason)


def largest_that_fits(trainer: Trainer, tokens: int) -> int:
    """Return `tokens`, or the first of its halves with which this process does not run out of memory."""
    smallest = trainer.stream.longest_pair_tokens()
    while True:
        trainer.stream.limit_microbatches(tokens)
        batch = trainer.stream.largest_microbatch()
        if fits(trainer, batch):
            return tokens
        if tokens <= smallest:
            raise InputError(
                f"trainer.microbatch_tokens=auto: not even the longest pair, {smallest} tokens, fits into the memory "
                f"of {trainer.device}: use a smaller model, or drop long pairs with data.cleaning.max_length_tokens"
            )
        # The batch of one of several ranks has fewer tokens than the limit.
        tokens = max(smallest, min(tokens, batch.num_padded_tokens) // 2)


def fits(trainer: Trainer, batch: Batch) -> bool:
    """Return whether forward and backward pass of a microbatch fit into memory."""
    try:
        run_trial(trainer, batch)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    else:
        return True
    # Outside of the except clause, which keeps the tensors of the failed pass alive.
    if trainer.device.type == "cuda":
        torch.cuda.empty_cache()
    return False


def run_trial(trainer: Trainer, batch: Batch) -> None:
    """Run forward and backward pass of a microbatch, and change neither gradients nor the random state."""
    reserved = torch.empty(reserved_bytes(trainer), dtype=torch.uint8, device=trainer.device)
    parameters = [parameter for parameter in trainer.objective.parameters() if parameter.requires_grad]
    torch.autograd.grad(trial_loss(trainer, batch), parameters, allow_unused=True)
    del reserved


def reserved_bytes(trainer: Trainer) -> int:
    """Return the bytes that must remain beside the microbatch: moments not allocated yet, and a spare part."""
    is_allocated = bool(trainer.staged_optimizer.optimizer.state)
    spare = 0
    if trainer.device.type == "cuda":
        spare = torch.cuda.get_device_properties(trainer.device).total_memory // SPARE_FRACTION
    return spare + (0 if is_allocated else moment_bytes(trainer))
