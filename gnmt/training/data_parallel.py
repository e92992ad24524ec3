"""Data-parallel training: gradients averaged over processes, and stop requests that all processes follow together.

Each process computes its local batch of every global batch, and all hold the same weights. Whatever must be equal
everywhere is computed from the same numbers: gradients and losses are summed over the processes.
"""

from __future__ import annotations

import hashlib
import signal
import struct
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gnmt.distributed import Ranks
from gnmt.signals import SIGNALS


class DataParallel:
    """Updates of one model by all processes of a job, inside `Ranks.process_group`.

    All ranks must make the same calls in the same order. A process that runs alone communicates with none.

    Args:
        ranks: The processes.
        device: Device of this process.
        seed: Seed of the run.
    """

    def __init__(self, ranks: Ranks, device: torch.device, seed: int) -> None:
        self.ranks = ranks
        self.device = device
        self.seed = seed
        # Summed stop requests of updates, and the CUDA event after which they can be read.
        self._stop_requests: list[tuple[Tensor, torch.cuda.Event | None]] = []

    def replicate(self, objective: nn.Module) -> nn.Module:
        """Return the module to call in training: its backward pass averages the gradients of all processes.

        The weights become those of rank 0. Buffers are constants here and are not sent.
        """
        if self.ranks.world_size == 1:
            return objective
        return DistributedDataParallel(objective, forward_sync_buffers=False, gradient_as_bucket_view=True)

    def accumulating(self, replica: nn.Module) -> AbstractContextManager[None]:
        """Return the context of every microbatch but the last: gradients are summed in this process only."""
        if isinstance(replica, DistributedDataParallel):
            no_sync: AbstractContextManager[None] = replica.no_sync()
            return no_sync
        return nullcontext()

    def begin_update(self, step: int) -> None:
        """Seed the random numbers, which dropout draws, as a function of (seed, update, rank).

        A run can then be resumed by another number of processes without the generator states of all of them. A process
        that runs alone draws from one sequence, whose state is in its checkpoints.
        """
        if self.ranks.world_size > 1:
            digest = hashlib.blake2b(struct.pack("<qqq", self.seed, step, self.ranks.rank), digest_size=8).digest()
            torch.manual_seed(int.from_bytes(digest, "little") >> 1)

    def end_update(self, loss_sum: Tensor, received: signal.Signals | None) -> Tensor:
        """Return the loss summed over all processes; the same all-reduce sums their stop requests.

        received: the signal that requested this process to stop, if any.
        """
        if self.ranks.world_size == 1:
            return loss_sum
        requests = _one_hot(received, torch.float64)
        row = torch.cat([loss_sum.double().view(1), requests.to(self.device, non_blocking=True)])
        dist.all_reduce(row)
        event = None
        summed = row[1:].to("cpu", non_blocking=True)
        if row.is_cuda:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._stop_requests.append((summed, event))
        return row[0]

    def stop_after_update(self, received: signal.Signals | None) -> signal.Signals | None:
        """Return the signal for which all processes stop after the present update; the same on every process.

        On CUDA it comes from the all-reduce of the previous update, so that the host does not wait for the present one.
        received: the signal that requested this process to stop, if any.
        """
        if self.ranks.world_size == 1:
            return received
        if len(self._stop_requests) <= int(self.device.type == "cuda"):
            return None
        summed, event = self._stop_requests.pop(0)
        if event is not None:
            event.synchronize()
        return _first_signal(summed)

    def stop_between_updates(self, received: signal.Signals | None) -> signal.Signals | None:
        """Return the signal for which all processes stop now, as `stop_after_update`, but from an all-reduce made here.

        It replaces the requests of earlier updates.
        """
        if self.ranks.world_size == 1:
            return received
        self._stop_requests.clear()
        requests = _one_hot(received, torch.float32)
        dist.all_reduce(requests)
        return _first_signal(requests)


def _one_hot(received: signal.Signals | None, dtype: torch.dtype) -> Tensor:
    """Return a row with an entry for each of SIGNALS, which is 1 for the received one."""
    return torch.tensor([float(number == received) for number in SIGNALS], dtype=dtype)


def _first_signal(summed: Tensor) -> signal.Signals | None:
    return next((number for number, count in zip(SIGNALS, summed.tolist(), strict=True) if count), None)
