"""The processes of a torchrun job: ranks, barriers, collectives, and propagation of failures.

`Ranks` identifies this process and communicates with the others. Its barriers use torchrun's key-value store and have
no time limit, because rank 0 may preprocess data for hours, but they say which rank they wait for. Its collectives use
the process group of torch.distributed, whose calls time out.

`Failures` ends all processes when one fails. The failed process writes its message to the store. The others read it at
their next barrier or check, and a `Watchdog` thread ends a process that hangs in a collective, where it would not
handle signals either. `ending_together` wraps a training in this protocol, and `report_once` wraps a translation, so
that the error is printed once.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import DistError, HashStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from gnmt.errors import InputError, Interrupted, first_line
from gnmt.logs import ended, polled, wait_for
from gnmt.signals import EXIT_CODES, ArrivedSignals, ignore_signals

log = logging.getLogger(__name__)

START_SECONDS = 300.0
"""Time limit for the start of all processes of a job, counted from the start of each."""

COLLECTIVE_MINUTES = 30
"""Time limit of a collective. A process that has not joined it by then hangs."""

WATCH_SECONDS = 1.0
"""Interval at which a `Watchdog` checks for failures."""

GRACE_SECONDS = 10.0
"""Time in which a process must end after another has failed, counted from its last write to the disk."""

WRITING_SECONDS = 600.0
"""Time in which a process must end after another has failed, including all its writes to the disk."""

SIGNAL_SECONDS = 3.0
"""Time in which the main thread must handle a second signal before a `Watchdog` ends the process."""

EXIT_SECONDS = 60.0
"""Time limit of `Ranks.wait_before_exit`."""

THREADS_SECONDS = 0.5
"""Time in which the threads of a destroyed process group release their tensors."""

_FAILURE_KEY = "failed"
_NUM_RANKS_SHOWN = 8


class Ranks:
    """The rank of this process, and its communication with the other processes of the job.

    All ranks must call the barriers (`wait_for_rank_0`, `wait_for_all`, `counter`, `process_group`, `wait_before_exit`)
    and the collectives in the same order. `failures` propagates the failure of one process to the others.

    Args:
        rank: Rank of this process, from 0.
        world_size: Number of processes.
        local_rank: Rank of this process among those on its machine.
        store: Key-value store shared by all processes. A process that runs alone needs none.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, local_rank: int = 0, store: Store | None = None) -> None:
        assert 0 <= rank < world_size
        assert store is not None or world_size == 1
        self.rank = rank
        self.world_size = world_size
        self.local_rank = local_rank
        self.failures = Failures(rank, store)
        self._store = HashStore() if store is None else store
        self._num_barriers = 0

    @classmethod
    def from_environment(cls) -> Ranks:
        """Connect to the job that torchrun describes in RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.

        Without these variables the process runs alone. Raises InputError if the processes cannot connect.
        """
        try:
            world_size = int(os.environ.get("WORLD_SIZE", "1"))
            if world_size == 1:
                return cls()
            rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
            address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            if not 0 <= rank < world_size or not all(address):
                raise ValueError(f"RANK={rank} WORLD_SIZE={world_size} MASTER_ADDR={address[0]}")
        except (KeyError, ValueError) as error:
            raise InputError(f"the processes of this job cannot connect ({error}): start them with torchrun") from error
        return cls(rank, world_size, local_rank, connect(*address, rank, world_size))

    @property
    def is_rank_0(self) -> bool:
        """True for the process that writes files and logs."""
        return self.rank == 0

    def local_device_name(self, name: str) -> str:
        """Return the name of this process's device: in a job, "cuda", or "auto" with CUDA, becomes the local GPU."""
        if self.world_size > 1 and (name == "cuda" or (name == "auto" and torch.cuda.is_available())):
            return f"cuda:{self.local_rank}"
        return name

    # Barriers

    def wait_for_rank_0(self, message: str = "") -> str:
        """Wait until rank 0 has reached this call, and return rank 0's message. Rank 0 does not wait."""
        name = self._next_barrier()
        if self.is_rank_0:
            self._store.set(name, message)
            return message
        self._wait_for_keys({name: 0})
        return self._store.get(name).decode()

    def wait_for_all(self) -> None:
        """On rank 0, wait until all other ranks have reached this call. The other ranks do not wait."""
        name = self._next_barrier()
        if self.is_rank_0:
            self._wait_for_keys({f"{name}/{rank}": rank for rank in range(1, self.world_size)})
        else:
            self._store.set(f"{name}/{self.rank}", "")

    def counter(self) -> Callable[[int], int]:
        """Return a counter that all ranks share. Called with a number, it adds the number and returns the new sum."""
        return functools.partial(self._store.add, self._next_barrier())

    def wait_before_exit(self) -> None:
        """Wait at the end of the work until all ranks have reached this call, for at most EXIT_SECONDS.

        Rank 0 may host the store. It waits for all others, and they wait for its reply, so that no process loses the
        store while it still reads from it.
        """
        name = self._next_barrier()
        others = {f"{name}/{rank}": rank for rank in range(1, self.world_size)}
        awaited = others if self.is_rank_0 else {f"{name}/0": 0}
        try:
            if not self.is_rank_0:
                self._store.set(f"{name}/{self.rank}", "")
            wait_for(
                polled(lambda: self._store.check([*awaited])), lambda: _missing(self._store, awaited), EXIT_SECONDS
            )
            if self.is_rank_0:
                self._store.set(f"{name}/0", "")
        except DistError:
            pass  # rank 0 has ended, and with it the store

    def _next_barrier(self) -> str:
        self._num_barriers += 1
        return f"barrier-{self._num_barriers}"

    def _wait_for_keys(self, ranks: dict[str, int]) -> None:
        """Wait until the store has all keys. Each key is written by the rank that it is mapped to."""

        def reached() -> bool:
            self.failures.check()
            return bool(self._store.check([*ranks]))

        level = logging.WARNING if self.rank <= 1 else logging.INFO  # one of those that wait for rank 0 prints it
        wait_for(polled(reached), lambda: _missing(self._store, ranks), level=level)

    # Collectives

    @contextmanager
    def process_group(self, device: torch.device) -> Iterator[None]:
        """Join the process group of torch.distributed, with gloo on CPUs and NCCL between GPUs.

        Processes that share a GPU, which NCCL refuses, communicate by gloo, through the memory of the CPU.

        After a failure the group is not destroyed, because the other processes may never reach that call.
        """
        if self.world_size == 1:
            yield
            return
        on_cuda = device.type == "cuda"
        if on_cuda:
            torch.cuda.set_device(device)
        # Joining the group and its collectives block in C++, where no signal is handled, so wait here for all ranks.
        name = self._next_barrier()
        self._store.set(f"{name}/{self.rank}", f"{socket.gethostname()} {device}")
        ranks = {f"{name}/{rank}": rank for rank in range(self.world_size)}
        self._wait_for_keys(ranks)
        share_a_gpu = on_cuda and len({self._store.get(key) for key in ranks}) < self.world_size
        if share_a_gpu:
            log.warning("processes share a GPU, which is slow: start one for each GPU, and leave device=auto")
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_cuda and not share_a_gpu else "gloo",
            store=PrefixStore(name, self._store),
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
        """Return the values of all ranks, ordered by rank. Every rank gets the list."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def from_rank_0(self, value: Any) -> Any:
        """Return the value of rank 0 on every rank."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]


def _destroy_process_group() -> None:
    dist.destroy_process_group()
    # The DDP wrapper of the model holds the last reference to the group. When the wrapper is freed, the threads of the
    # group are joined while the GIL is held. A thread that still has to release a tensor needs the GIL: a deadlock.
    time.sleep(THREADS_SECONDS)


@functools.cache
def current_ranks() -> Ranks:
    """Return the `Ranks` of this job. The process has only one, because the object numbers the barriers."""
    return Ranks.from_environment()


def connect(host: str, port: int, rank: int, world_size: int) -> Store:
    """Return the store of a new job, when all its processes have connected.

    Rank 0 hosts the store, unless torchrun does. Raises InputError if not all processes start within START_SECONDS.
    """
    hosted_by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    start = time.monotonic()
    store: list[Store] = []
    errors: list[Exception] = []

    def open_store() -> None:
        is_host = rank == 0 and not hosted_by_torchrun
        try:
            # By default, the host would wait here for all others, in C++, and could not say which one is missing.
            store.append(TCPStore(host, port, world_size, is_host, wait_for_workers=False, multi_tenant=True))
        except (DistError, ValueError) as error:
            errors.append(error)

    # The constructor blocks until the host answers. In a thread, it does not keep signals from being handled.
    thread = threading.Thread(target=open_store, name="connection to the store", daemon=True)
    thread.start()

    what = f"{'torchrun' if hosted_by_torchrun else 'rank 0'} at {host}:{port}"
    if not wait_for(ended(thread), lambda: f"{what}, where the processes of this job connect", START_SECONDS):
        raise _not_started(world_size, what)
    try:
        if errors:
            raise errors[0]
        return fresh_store(store[0], rank, world_size, START_SECONDS - (time.monotonic() - start))
    except (DistError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"the processes of this job cannot connect at {host}:{port} ({first_line(error)}): start them with torchrun"
        ) from error


def fresh_store(store: Store, rank: int, world_size: int, limit_seconds: float) -> Store:
    """Return the store with a new key prefix on which all ranks agree.

    torchrun keeps its store when it restarts failed processes, and the number of restarts may differ between machines.
    Without a new prefix, the keys of earlier processes would be read as keys of the current ones. Rank 0 chooses the
    prefix. Each other rank writes a random number, and rank 0 writes the prefix under that number, until all ranks have
    received it. Raises InputError if this takes longer than `limit_seconds`.
    """
    own = secrets.token_hex(8)
    awaited = {f"welcome-{own}": 0}
    if rank == 0:
        awaited = {f"received-{own}-{other}": other for other in range(1, world_size)}
    else:
        store.set(f"hello-{rank}", own)

    def reached() -> bool:
        if rank == 0:
            for other in range(1, world_size):
                if store.check([f"hello-{other}"]):
                    store.set(f"welcome-{store.get(f'hello-{other}').decode()}", own)
        return bool(store.check([*awaited]))

    if not wait_for(polled(reached), lambda: f"{_missing(store, awaited)} to start", limit_seconds):
        raise _not_started(world_size, _missing(store, awaited))
    if rank == 0:
        return PrefixStore(own, store)
    prefix = store.get(f"welcome-{own}").decode()
    store.set(f"received-{prefix}-{rank}", "")
    return PrefixStore(prefix, store)


def _missing(store: Store, ranks: dict[str, int]) -> str:
    """Return "rank 3" or "ranks 3, 4": those whose keys the store does not have."""
    missing = [rank for key, rank in ranks.items() if not store.check([key])]
    return f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing[:_NUM_RANKS_SHOWN]))}" + (
        f" and {len(missing) - _NUM_RANKS_SHOWN} more" if len(missing) > _NUM_RANKS_SHOWN else ""
    )


def _not_started(world_size: int, missing: str) -> InputError:
    return InputError(
        f"not all of the {world_size} processes have started within {START_SECONDS:.0f} seconds ({missing} did not "
        "answer): see the messages of the others, and start all of them again"
    )


class Failures:
    """Failure protocol of a job: ends all processes with the message of the process that failed first.

    `store` is None for a process that runs alone.
    """

    def __init__(self, rank: int, store: Store | None) -> None:
        self.failed_first = False
        """True if this process failed before all others."""
        self._rank = rank
        self._store = store
        self._concluded = False

    def message(self) -> str | None:
        """Return the message of the process that failed first, which may be this one; None if none has failed."""
        return None if self._store is None else _failure_in(self._store)

    def check(self) -> None:
        """Raise InputError if a process has failed. Call this regularly in long work without barriers."""
        message = self.message()
        if message is not None:
            raise InputError(message)

    @contextmanager
    def propagated(self) -> Iterator[None]:
        """End the other processes, at their next check or barrier, if an exception is raised in this context."""
        self._concluded = False
        try:
            yield
        except BaseException as error:
            if self._store is not None and not self._concluded:
                try:
                    # The counter orders two processes that fail at the same time.
                    self.failed_first = self._store.add("failed ranks", 1) == 1
                    if self.failed_first:
                        message = str(error) or type(error).__name__
                        self._store.set(_FAILURE_KEY, f"stopped, because rank {self._rank} did: {message}")
                except DistError:
                    pass  # the other processes have ended already
            raise

    def conclude(self) -> None:
        """Stop the propagation of `propagated`, because the work is done or all processes have agreed to stop."""
        self._concluded = True

    def watchdog(self, is_writing: Callable[[], bool]) -> Watchdog:
        """Return a `Watchdog` with its own connection to the store. Rank 0's watchdog logs the failure."""
        assert self._store is not None
        return Watchdog(self._store.clone(), self._rank == 0, is_writing)  # type: ignore[attr-defined]


def _failure_in(store: Store) -> str | None:
    """Return the message of the failure that is recorded in the store; None if there is none."""
    try:
        return store.get(_FAILURE_KEY).decode() if store.check([_FAILURE_KEY]) else None
    except DistError:
        return "the other processes have ended; the first error message says why"


class Watchdog(threading.Thread):
    """Thread that ends this process if another process has failed and this one hangs, for example in a collective.

    Args:
        store: A connection that only this thread uses, because the main thread may be blocked in its own.
        reports: If True, log the failure.
        is_writing: Returns True while a file is being written that would be lost with the process, such as a
            checkpoint.
    """

    def __init__(self, store: Store, reports: bool, is_writing: Callable[[], bool] = lambda: False) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._store = store
        self._reports = reports
        self._is_writing = is_writing
        self._dismissed = threading.Event()
        self._arrived = ArrivedSignals()
        self._unhandled_since = math.inf
        self._has_explained = False

    def start(self) -> None:
        """Start the thread and observe signals; call this in the main thread."""
        signal.set_wakeup_fd(self._arrived.writer, warn_on_full_buffer=False)
        super().start()

    def run(self) -> None:
        """Check the store and the signals until `dismiss` is called or a process has failed."""
        while not self._dismissed.wait(WATCH_SECONDS):
            self._check_signals()
            message = _failure_in(self._store)
            if message is None:
                continue
            if not self._dismissed_in_time():
                if self._reports:
                    log.error("%s", message)
                logging.shutdown()
                os._exit(1)
            return

    def dismiss(self) -> None:
        """Stop the thread when the work has ended without a failure."""
        signal.set_wakeup_fd(-1)
        self._dismissed.set()
        self.join()
        self._arrived.close()

    def _check_signals(self) -> None:
        """Do what the handlers of the main thread would do if it is blocked, as in a collective without an answer."""
        unhandled = self._arrived.unhandled()
        if not unhandled:
            self._unhandled_since = math.inf
            return
        self._unhandled_since = min(self._unhandled_since, time.monotonic())
        seconds = time.monotonic() - self._unhandled_since
        name = signal.Signals(unhandled[-1]).name
        if self._arrived.total > 1 and seconds >= SIGNAL_SECONDS:
            log.error("%s: stopped at once, nothing more was saved", name)
            logging.shutdown()
            os._exit(EXIT_CODES[signal.Signals(unhandled[-1])])
        if seconds >= GRACE_SECONDS and not self._has_explained:
            self._has_explained = True
            log.warning("%s: this process still waits for another one (a second signal stops it at once)", name)

    def _dismissed_in_time(self) -> bool:
        """Return True if `dismiss` is called within GRACE_SECONDS after the last write and within WRITING_SECONDS."""
        noticed = idle_since = time.monotonic()
        while time.monotonic() < min(idle_since + GRACE_SECONDS, noticed + WRITING_SECONDS):
            if self._dismissed.wait(min(WATCH_SECONDS, GRACE_SECONDS)):
                return True
            if self._is_writing():
                idle_since = time.monotonic()
        return False


@contextmanager
def ending_together(ranks: Ranks, is_writing: Callable[[], bool]) -> Iterator[None]:
    """Wrap all work of a training so that an error of one process ends all of them, with one message and no hang.

    The process that failed first raises its error with its rank. The others exit with code 1, and rank 0 logs the
    reason. A watchdog ends processes that hang, but not while `is_writing()` is True.
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
    """Raise the error, with the rank, if this process failed first; otherwise exit with code 1."""
    if not ranks.failures.failed_first:
        if ranks.is_rank_0:
            log.error("%s", ranks.failures.message())
        raise SystemExit(1) from error
    prefix = "" if ranks.is_rank_0 else f"rank {ranks.rank}: "
    if isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
        raise InputError(
            f"{prefix}another process has ended without an error message (perhaps killed for its memory use): "
            f"{str(error).split('. ')[0]}"
        ) from error
    if not isinstance(error, InputError):
        log.error("%s: %s", type(error).__name__, error)  # the log line names the rank, a traceback does not
    elif prefix:
        raise InputError(f"{prefix}{error}") from error
    raise error


@contextmanager
def report_once(ranks: Ranks) -> Iterator[None]:
    """Wrap the work of a script so that an InputError is raised by rank 0 and by the process that failed first only.

    The others exit with code 1 and without a message.
    """
    try:
        yield
    except InputError as error:
        if ranks.world_size > 1 and not ranks.failures.failed_first and not ranks.is_rank_0:
            raise SystemExit(1) from error
        raise
