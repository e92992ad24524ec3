"""Data-parallel training: averages gradients over the processes of a job, and makes all of them stop together.

All processes hold the same weights, and each computes its local batch of every global batch, which
`gnmt.data.batching.BatchStream` splits. Gradients, losses and stop requests are reduced over the processes, so that all
take the same update and stop after the same one.
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
    """Communication of a training over the process group of `Ranks.process_group`.

    All ranks must make the same calls in the same order. With a world size of 1, nothing is communicated.

    Args:
        ranks: Processes of the job.
        device: Device of this process.
        seed: Seed of the run.
    """

    def __init__(self, ranks: Ranks, device: torch.device, seed: int) -> None:
        self.ranks = ranks
        self.device = device
        self.seed = seed
        # Stop requests of updates, summed over the processes, and the CUDA event after which they can be read.
        self._stop_requests: list[tuple[Tensor, torch.cuda.Event | None]] = []

    def replicate(self, objective: nn.Module) -> nn.Module:
        """Wrap the objective so that its backward pass averages gradients over all processes.

        All processes receive the weights of rank 0. Buffers are not sent, because they are constants.
        """
        if self.ranks.world_size == 1:
            return objective
        return DistributedDataParallel(objective, forward_sync_buffers=False, gradient_as_bucket_view=True)

    def no_sync(self, replica: nn.Module) -> AbstractContextManager[None]:
        """Return a context without gradient communication, for all microbatches of an update but the last."""
        if isinstance(replica, DistributedDataParallel):
            context: AbstractContextManager[None] = replica.no_sync()
            return context
        return nullcontext()

    def begin_update(self, step: int) -> None:
        """Seed the random number generator of dropout by (seed, update, rank).

        A checkpoint then needs no generator state of each process, and another number of processes can resume the run.
        A process that runs alone is not seeded, because its checkpoints contain the generator state.
        """
        if self.ranks.world_size > 1:
            digest = hashlib.blake2b(struct.pack("<qqq", self.seed, step, self.ranks.rank), digest_size=8).digest()
            torch.manual_seed(int.from_bytes(digest, "little") >> 1)

    def end_update(self, sums_M: Tensor, received: signal.Signals | None) -> Tensor:
        """Return the loss and the statistics summed over all processes. The same all-reduce sums their stop requests.

        Args:
            sums_M: The loss and the statistics of this process.
            received: The stop signal of this process, if any.
        """
        if self.ranks.world_size == 1:
            return sums_M
        requests = _encode_request(received, torch.float64)
        row = torch.cat([sums_M.double(), requests.to(self.device, non_blocking=True)])
        dist.all_reduce(row)
        event = None
        summed = row[len(sums_M) :].to("cpu", non_blocking=True)
        if row.is_cuda:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._stop_requests.append((summed, event))
        return row[: len(sums_M)]

    def stop_after_update(self, received: signal.Signals | None) -> signal.Signals | None:
        """Return the signal for which all processes stop after the current update, or None. All return the same.

        On CUDA it comes from the all-reduce of the previous update, so that the host does not wait for the current one.
        `received` is the stop signal of this process, if any.
        """
        if self.ranks.world_size == 1:
            return received
        if len(self._stop_requests) <= int(self.device.type == "cuda"):
            return None
        summed, event = self._stop_requests.pop(0)
        if event is not None:
            event.synchronize()
        return _decode_requests(summed)

    def stop_between_updates(self, received: signal.Signals | None) -> signal.Signals | None:
        """Return the signal for which all processes stop now, or None. All return the same.

        Unlike `stop_after_update`, this makes an all-reduce of its own. It discards the requests of earlier updates,
        because `received` still contains the one of this process.
        """
        if self.ranks.world_size == 1:
            return received
        self._stop_requests.clear()
        requests = _encode_request(received, torch.float32)
        dist.all_reduce(requests)
        return _decode_requests(requests)


def _encode_request(received: signal.Signals | None, dtype: torch.dtype) -> Tensor:
    """Return a tensor [len(SIGNALS)] with 1 for the received signal and 0 for the others."""
    return torch.tensor([float(number == received) for number in SIGNALS], dtype=dtype)


def _decode_requests(summed: Tensor) -> signal.Signals | None:
    """Return the first of SIGNALS that some process has received; None if no process received any."""
    return next((number for number, count in zip(SIGNALS, summed.tolist(), strict=True) if count), None)
