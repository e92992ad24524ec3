"""Several processes that train one model: each on its share of every batch, all with the same weights.

What must be the same everywhere is computed from what all have: gradients and losses summed over the processes, dev
figures of gathered translations. What only the first can know (what lies on its disk) it tells the others.
"""

from __future__ import annotations

import hashlib
import logging
import signal
import struct
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gnmt.distributed import Ranks
from gnmt.errors import InputError, Interrupted
from gnmt.signals import SIGNALS, ignore_signals
from gnmt.training.run_checkpoints import is_writing

log = logging.getLogger(__name__)

COLLECTIVE_MINUTES = 30
"""How long one process waits for another in the middle of training; only a process that hangs takes so long."""
LETTING_GO_SECONDS = 0.5
"""For the threads of a process group to forget what they have sent."""


class Group:
    """The processes of one training; one that is alone needs no communication, and none of this costs it anything.

    All must make the same calls in the same order. seed: the run's.
    """

    def __init__(self, ranks: Ranks, device: torch.device, seed: int) -> None:
        self.ranks = ranks
        self.device = device
        self.seed = seed
        self._votes: list[tuple[Tensor, torch.cuda.Event | None]] = []

    @classmethod
    def alone(cls, device: torch.device) -> Group:
        """That of a process that trains by itself."""
        return cls(Ranks(), device, seed=0)

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self.ranks.world_size

    @property
    def rank(self) -> int:
        """This process's number, from 0."""
        return self.ranks.rank

    @property
    def is_rank_0(self) -> bool:
        """True for the one process that writes and logs."""
        return self.ranks.is_rank_0

    def __enter__(self) -> Self:
        """Joins the processes: gloo for the CPU, and NCCL between GPUs."""
        if self.size > 1:
            on_cuda = self.device.type == "cuda"
            if on_cuda:
                torch.cuda.set_device(self.device)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
                store=self.ranks.shared_store("training"),
                rank=self.rank,
                world_size=self.size,
                timeout=timedelta(minutes=COLLECTIVE_MINUTES),
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After a failure others may never come to this, and the process ends anyway.
        if self.size > 1 and (error is None or (isinstance(error, Interrupted) and error.agreed)):
            dist.destroy_process_group()
            # Whoever wraps the model holds the last reference to the group, whose threads are joined when it goes, with
            # Python's lock held: one that has yet to let go of a tensor would wait for that lock, and both for ever.
            time.sleep(LETTING_GO_SECONDS)

    # Updates

    def replicate(self, objective: nn.Module) -> nn.Module:
        """What to call in training: backward over it averages the gradients of all processes.

        The weights become those of the first process. Buffers are constants here, which need no sending.
        """
        if self.size == 1:
            return objective
        return DistributedDataParallel(objective, forward_sync_buffers=False, gradient_as_bucket_view=True)

    def accumulating(self, replica: nn.Module) -> AbstractContextManager[None]:
        """Inside it, gradients are added up in this process only: for all microbatches but the last."""
        if isinstance(replica, DistributedDataParallel):
            no_sync: AbstractContextManager[None] = replica.no_sync()
            return no_sync
        return nullcontext()

    def begin_update(self, step: int) -> None:
        """Random numbers, which dropout draws, that are a function of (seed, update, rank).

        So going on, also with another number of processes, needs no state of theirs. A process that is alone draws
        from the one sequence that its checkpoints carry.
        """
        if self.size > 1:
            digest = hashlib.blake2b(struct.pack("<qqq", self.seed, step, self.rank), digest_size=8).digest()
            torch.manual_seed(int.from_bytes(digest, "little") >> 1)

    def end_update(self, loss_sum: Tensor, wish: signal.Signals | None) -> Tensor:
        """The loss summed over all processes; with it travels whether a signal asked this process to stop."""
        if self.size == 1:
            return loss_sum
        wishes = torch.tensor([float(number == wish) for number in SIGNALS], dtype=torch.float64)
        row = torch.cat([loss_sum.double().view(1), wishes.to(self.device, non_blocking=True)])
        dist.all_reduce(row)
        event = None
        votes = row[1:].to("cpu", non_blocking=True)
        if row.is_cuda:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._votes.append((votes, event))
        return row[0]

    def voted(self, wish: signal.Signals | None) -> signal.Signals | None:
        """The signal for which all stop after the present update, on every process the same; wish: this one's own.

        On CUDA it is the vote of the update before, which has been computed by now: nobody waits for the present one.
        """
        if self.size == 1:
            return wish
        if len(self._votes) <= int(self.device.type == "cuda"):
            return None
        votes, event = self._votes.pop(0)
        if event is not None:
            event.synchronize()
        return _first_signal(votes)

    def agree(self, wish: signal.Signals | None) -> signal.Signals | None:
        """The same between updates, where all can wait for each other."""
        if self.size == 1:
            return wish
        self._votes.clear()
        votes = torch.tensor([float(number == wish) for number in SIGNALS])
        dist.all_reduce(votes)
        return _first_signal(votes)

    # Around updates

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in the order of their ranks, on every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_rank_0(self, value: Any) -> Any:
        """The first process's value, on every process."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def part(self, value: Any) -> Any:
        """The first process's value, to which all have come: what ends one from here on is no failure of the others."""
        value = self.from_rank_0(value)
        self.ranks.part()
        return value


def _first_signal(votes: Tensor) -> signal.Signals | None:
    return next((number for number, count in zip(SIGNALS, votes.tolist(), strict=True) if count), None)


@contextmanager
def ending_together(ranks: Ranks) -> Iterator[None]:
    """Around all that several processes do: an error of one ends all, with one message and without waiting for ever.

    The process that failed raises its error, which names the rank; the others say why they stop (the first) and exit
    with code 1. A watchdog ends those that wait where they cannot be told, but not before a checkpoint that is being
    written is whole.
    """
    if ranks.world_size == 1:
        yield
        return
    watchdog = ranks.watchdog(is_writing)
    watchdog.start()
    try:
        with ranks.together():
            yield
            ranks.part()
    except Interrupted as stop:
        if not stop.agreed:
            raise
        ignore_signals()
        watchdog.dismiss()
        ranks.leave()
        raise
    except Exception as error:
        raise_or_exit(ranks, error)
    watchdog.dismiss()
    ranks.leave()


def raise_or_exit(ranks: Ranks, error: Exception) -> None:
    """Raises the error where it is this process's own; ends the process quietly where another's came first."""
    if not ranks.failed_first:
        if ranks.is_rank_0:
            log.error("%s", ranks.failure())
        raise SystemExit(1) from error
    if is_lost_connection(error):
        raise InputError(
            f"{'' if ranks.is_rank_0 else f'rank {ranks.rank}: '}another process has ended without a word "
            f"(was it killed, for its memory perhaps?): {str(error).split('. ')[0]}"
        ) from error
    if isinstance(error, InputError) and not ranks.is_rank_0:
        raise InputError(f"rank {ranks.rank}: {error}") from error
    if not isinstance(error, InputError):
        log.error("%s: %s", type(error).__name__, error)  # a traceback alone would not name the rank
    raise error


def is_lost_connection(error: Exception) -> bool:
    """Whether a collective failed for want of the other side."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error)
