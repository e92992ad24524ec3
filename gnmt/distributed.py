"""Processes of one torchrun job: ranks, barriers, collectives, and how the failure of one process ends all.

`Ranks` is this process's view of the group. Its barriers pass through torchrun's key-value store, so a process may wait
there for as long as data is being preprocessed. Its collectives need the process group of torch.distributed, whose
calls time out.

`Failures` is the failure protocol. The process that fails writes its message to the store. The others read it at their
next barrier or check, or their `Watchdog` does while they hang in a collective, and all of them end. `ending_together`
and `report_once` wrap the work of training and of translation in this protocol, so that the error is printed once.
"""

from __future__ import annotations

import functools
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import DistError, PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from gnmt.errors import InputError, Interrupted
from gnmt.signals import ignore_signals

log = logging.getLogger(__name__)

START_SECONDS = 300.0
"""All processes of a job must have started within this time."""
COLLECTIVE_MINUTES = 30
"""A collective fails when a process has not joined it for this long, which means that it hangs."""
WATCH_SECONDS = 1.0
"""A `Watchdog` checks for failures at this interval."""
GRACE_SECONDS = 10.0
"""When another process has failed, a process may take this long to end, counted from the end of its last write."""
WRITING_SECONDS = 600.0
"""When another process has failed, a process may take this long to end, including all writes to the disk."""
EXIT_SECONDS = 60.0
"""`Ranks.wait_before_exit` waits at most this long for the other processes."""
THREADS_SECONDS = 0.5
"""The threads of a destroyed process group release what they have sent within this time."""
_POLL_SECONDS = 0.1


class Ranks:
    """The processes of a job: this one has `rank` of `world_size`, and `local_rank` on its machine.

    All ranks must make the same calls of barriers (`wait_for_rank_0`, `wait_for_all`, `counter`, `process_group`,
    `wait_before_exit`) and collectives in the same order. `failures` is their failure protocol.

    Args:
        rank: Number of this process, from 0.
        world_size: Number of processes.
        local_rank: Number of this process among those on its machine.
        store: Key-value store of all processes; a process that runs alone needs none.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, local_rank: int = 0, store: Store | None = None) -> None:
        assert 0 <= rank < world_size
        assert store is not None or world_size == 1
        self.rank = rank
        self.world_size = world_size
        self.local_rank = local_rank
        self.failures = Failures(rank, store)
        self._store = store
        self._num_barriers = 0

    @classmethod
    def from_environment(cls) -> Ranks:
        """Return the ranks that torchrun describes in RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.

        Without these variables the process runs alone. Raises InputError if the processes cannot connect.
        """
        try:
            world_size = int(os.environ.get("WORLD_SIZE", "1"))
            if world_size == 1:
                return cls()
            store, rank, world_size = next(rendezvous("env://"))
            return cls(rank, world_size, int(os.environ["LOCAL_RANK"]), fresh_store(store, rank, world_size))
        except (KeyError, ValueError, DistError) as error:
            raise InputError(f"the processes of this job cannot connect ({error}): start them with torchrun") from error

    @property
    def is_rank_0(self) -> bool:
        """True for the one process that writes and logs."""
        return self.rank == 0

    def local_device_name(self, name: str) -> str:
        """Return the value of `device=` for this process: `cuda` (or auto, with CUDA) becomes its local GPU."""
        if self.world_size > 1 and (name == "cuda" or (name == "auto" and torch.cuda.is_available())):
            return f"cuda:{self.local_rank}"
        return name

    # Barriers

    def wait_for_rank_0(self, message: str = "") -> str:
        """Wait until rank 0 has reached this call, and return rank 0's message; rank 0 does not wait."""
        name = self._next_barrier()
        if self._store is None:
            return message
        store = self._store
        if self.is_rank_0:
            store.set(name, message)
            return message
        self._wait_until(lambda: store.check([name]))
        return store.get(name).decode()

    def wait_for_all(self) -> None:
        """Let rank 0 wait until all other ranks have reached this call; the others do not wait."""
        name = self._next_barrier()
        if self._store is None:
            return
        store = self._store
        if self.is_rank_0:
            others = [f"{name}/{rank}" for rank in range(1, self.world_size)]
            self._wait_until(lambda: store.check(others))
        else:
            store.set(f"{name}/{self.rank}", "")

    def counter(self) -> Callable[[int], int]:
        """Return a counter shared by all ranks: called with a number, it adds it and returns the sum over all ranks."""
        name = self._next_barrier()
        if self._store is None:
            return _LocalCounter()
        return functools.partial(self._store.add, name)

    def wait_before_exit(self) -> None:
        """Wait at the end of the work until all ranks have come here, but at most EXIT_SECONDS.

        Rank 0 may host the store. It waits for all others, and they wait for its answer, so that no process loses the
        store while it still reads it.
        """
        if self._store is None:
            return
        deadline = time.monotonic() + EXIT_SECONDS
        name = self._next_barrier()
        try:
            self._store.add(name, 1)
            while self.is_rank_0 and self._store.add(name, 0) < self.world_size and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
            if self.is_rank_0:
                self._store.set(f"{name}/rank-0", "")
            while not self._store.check([f"{name}/rank-0"]) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
        except DistError:
            pass  # rank 0 has ended, and the store with it

    def _next_barrier(self) -> str:
        self._num_barriers += 1
        return f"barrier-{self._num_barriers}"

    def _wait_until(self, reached: Callable[[], bool]) -> None:
        while True:
            self.failures.check()
            if reached():
                return
            time.sleep(_POLL_SECONDS)

    # Collectives

    @contextmanager
    def process_group(self, device: torch.device) -> Iterator[None]:
        """Join the process group of torch.distributed: gloo on CPUs, NCCL between GPUs.

        After a failure the group is not destroyed, because other processes may never reach that call.
        """
        if self.world_size == 1:
            yield
            return
        on_cuda = device.type == "cuda"
        if on_cuda:
            torch.cuda.set_device(device)
        assert self._store is not None
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
            store=PrefixStore(self._next_barrier(), self._store),
            rank=self.rank,
            world_size=self.world_size,
            timeout=timedelta(minutes=COLLECTIVE_MINUTES),
        )
        try:
            yield
        except BaseException as error:
            if isinstance(error, Interrupted) and error.agreed:
                _destroy_process_group()
            raise
        _destroy_process_group()

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in their order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def from_rank_0(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]


def _destroy_process_group() -> None:
    dist.destroy_process_group()
    # The wrapper of the model holds the last reference to the group. When it is freed, the group's threads are joined
    # while Python's lock is held. A thread that has yet to release a tensor would wait for that lock: a deadlock.
    time.sleep(THREADS_SECONDS)


class _LocalCounter:
    """The counter of a process that runs alone."""

    def __init__(self) -> None:
        self._sum = 0

    def __call__(self, number: int) -> int:
        self._sum += number
        return self._sum


@functools.cache
def current_ranks() -> Ranks:
    """Return the ranks of this job. One object serves the whole process, because it counts the barriers."""
    return Ranks.from_environment()


def fresh_store(store: Store, rank: int, world_size: int) -> Store:
    """Return the store under a prefix that is new, and the same on all ranks.

    torchrun keeps its store when it restarts failed processes, and the number of restarts may differ between machines.
    The keys of earlier processes must not be read as keys of the present ones. Therefore each other rank writes a
    random number of its own, and rank 0 answers that number with the prefix, until all have received it.
    Raises InputError if not all processes start in time.
    """
    own = secrets.token_hex(8)
    deadline = time.monotonic() + START_SECONDS

    def wait() -> None:
        if time.monotonic() > deadline:
            raise InputError(
                f"not all of the {world_size} processes have started within {START_SECONDS:.0f} seconds: "
                "see the messages of the others, and start all of them again"
            )
        time.sleep(_POLL_SECONDS)

    if rank > 0:
        store.set(f"hello-{rank}", own)
        while not store.check([f"welcome-{own}"]):
            wait()
        prefix = store.get(f"welcome-{own}").decode()
        store.add(f"received-{prefix}", 1)
        return PrefixStore(prefix, store)
    while store.add(f"received-{own}", 0) < world_size - 1:
        for hello in (f"hello-{other}" for other in range(1, world_size)):
            if store.check([hello]):
                store.set(f"welcome-{store.get(hello).decode()}", own)
        wait()
    return PrefixStore(own, store)


class Failures:
    """The failure protocol of a job: the message of the first process that failed, in the store of all.

    store: None for a process that runs alone, which has no others to end.
    """

    def __init__(self, rank: int, store: Store | None) -> None:
        self.failed_first = False
        """True if the failure that ends all processes is this process's own."""
        self._rank = rank
        self._store = store
        self._concluded = False

    def message(self) -> str | None:
        """Return the message of the failed process, which may be this one; None while all work."""
        return None if self._store is None else _failure_in(self._store)

    def check(self) -> None:
        """Raise InputError if another process has failed; long work without barriers calls this now and then."""
        message = self.message()
        if message is not None:
            raise InputError(message)

    @contextmanager
    def propagated(self) -> Iterator[None]:
        """End the other processes, at their next check or barrier, if an exception leaves this context."""
        self._concluded = False
        try:
            yield
        except BaseException as error:
            if self._store is not None and not self._concluded:
                try:
                    # The count decides between two processes that fail at the same time.
                    self.failed_first = self._store.add("failed ranks", 1) == 1
                    if self.failed_first:
                        message = str(error) or type(error).__name__
                        self._store.set(_FAILED, f"stopped, because rank {self._rank} did: {message}")
                except DistError:
                    pass  # the other processes have ended; the error itself is raised below
            raise

    def conclude(self) -> None:
        """End the propagation inside `propagated`: the work is done, or all processes have agreed to stop."""
        self._concluded = True

    def watchdog(self, is_writing: Callable[[], bool]) -> Watchdog:
        """Return a watchdog over this protocol; see `Watchdog`."""
        assert self._store is not None
        return Watchdog(self._store.clone(), self._rank == 0, is_writing)  # type: ignore[attr-defined]


_FAILED = "failed"


def _failure_in(store: Store) -> str | None:
    try:
        return store.get(_FAILED).decode() if store.check([_FAILED]) else None
    except DistError:
        return "the other processes have ended; the first error message says why"


class Watchdog(threading.Thread):
    """A thread that ends this process if another has failed and this one hangs, as in a collective.

    Args:
        store: A connection of its own, because the process may be waiting in another one.
        reports: Whether to log the failure.
        is_writing: Returns whether something is being written that would be lost with the process, as a checkpoint.
    """

    def __init__(self, store: Store, reports: bool, is_writing: Callable[[], bool] = lambda: False) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._store = store
        self._reports = reports
        self._is_writing = is_writing
        self._dismissed = threading.Event()

    def run(self) -> None:
        while not self._dismissed.wait(WATCH_SECONDS):
            message = _failure_in(self._store)
            if message is not None:
                if not self._dismissed_in_time():
                    if self._reports:
                        log.error("%s", message)
                    logging.shutdown()
                    os._exit(1)
                return

    def dismiss(self) -> None:
        """Stop watching; called when the work has ended well."""
        self._dismissed.set()
        self.join()

    def _dismissed_in_time(self) -> bool:
        """Wait for GRACE_SECONDS after the last write, at most WRITING_SECONDS; return whether `dismiss` was called."""
        noticed = idle_since = time.monotonic()
        while time.monotonic() < min(idle_since + GRACE_SECONDS, noticed + WRITING_SECONDS):
            if self._dismissed.wait(min(WATCH_SECONDS, GRACE_SECONDS)):
                return True
            if self._is_writing():
                idle_since = time.monotonic()
        return False


@contextmanager
def ending_together(ranks: Ranks, is_writing: Callable[[], bool]) -> Iterator[None]:
    """Wrap all work of a training: an error of one process ends all, with one message and without a hang.

    The process that failed raises its error, which names the rank. The others exit with code 1; rank 0 logs the reason.
    A watchdog ends processes that hang, but not while `is_writing` returns True for a checkpoint.
    """
    if ranks.world_size == 1:
        yield
        return
    watchdog = ranks.failures.watchdog(is_writing)
    watchdog.start()
    try:
        with ranks.failures.propagated():
            yield
            ranks.failures.conclude()
    except Interrupted as stop:
        if not stop.agreed:
            raise
        ignore_signals()
        watchdog.dismiss()
        ranks.wait_before_exit()
        raise
    except Exception as error:
        _raise_or_exit(ranks, error)
    watchdog.dismiss()
    ranks.wait_before_exit()


def _raise_or_exit(ranks: Ranks, error: Exception) -> None:
    """Raise the error if it is this process's own; exit without a message if another process failed first."""
    if not ranks.failures.failed_first:
        if ranks.is_rank_0:
            log.error("%s", ranks.failures.message())
        raise SystemExit(1) from error
    if isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
        raise InputError(
            f"{'' if ranks.is_rank_0 else f'rank {ranks.rank}: '}another process has ended without an error message "
            f"(perhaps killed for its memory use): {str(error).split('. ')[0]}"
        ) from error
    if isinstance(error, InputError) and not ranks.is_rank_0:
        raise InputError(f"rank {ranks.rank}: {error}") from error
    if not isinstance(error, InputError):
        log.error("%s: %s", type(error).__name__, error)  # a traceback alone would not name the rank
    raise error


@contextmanager
def report_once(ranks: Ranks) -> Iterator[None]:
    """Wrap the work of a script whose processes propagate InputErrors: only rank 0 and the failed process raise them.

    The others exit with code 1 and without a message.
    """
    try:
        yield
    except InputError as error:
        if ranks.world_size > 1 and not ranks.failures.failed_first and not ranks.is_rank_0:
            raise SystemExit(1) from error
        raise
