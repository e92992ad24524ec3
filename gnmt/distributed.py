"""Processes of one torchrun job: ranks, barriers, and how one failure ends all."""

from __future__ import annotations

import functools
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.distributed import DistError, PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from gnmt.errors import InputError

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_FAILED = "failed"
_ENDED = "the other processes have ended; the first error message says why"

MEETING_SECONDS = 300.0
"""For all processes to have started."""
WATCH_SECONDS = 1.0
"""Between two looks of a `Watchdog`."""
GRACE_SECONDS = 10.0
"""For a process that hears of another's failure to end by itself, after what it is writing."""
WRITING_SECONDS = 600.0
"""For all of that."""
LEAVING_SECONDS = 60.0
"""For the last meeting of processes that have done their work."""


class Ranks:
    """This process among those of its job: `rank` of `world_size`, and `local_rank` on its machine.

    store: what they share; a process that is alone needs none. All ranks must make the same calls of `wait_for_rank_0`
    and `wait_for_all`, in the same order.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, local_rank: int = 0, store: Store | None = None) -> None:
        assert 0 <= rank < world_size
        assert store is not None or world_size == 1
        self.rank = rank
        self.world_size = world_size
        self.local_rank = local_rank
        self._store = store
        self._num_meetings = 0
        self._parted = False
        self.failed_first = False
        """Whether the failure that ends all is this process's."""

    @classmethod
    def from_environment(cls) -> Ranks:
        """What torchrun says in RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; alone without them."""
        try:
            world_size = int(os.environ.get("WORLD_SIZE", "1"))
            if world_size == 1:
                return cls()
            store, rank, world_size = next(rendezvous("env://"))
            return cls(rank, world_size, int(os.environ["LOCAL_RANK"]), fresh_store(store, rank, world_size))
        except (KeyError, ValueError, DistError) as error:
            raise InputError(f"the processes cannot meet ({error}): start them with torchrun") from error

    @property
    def is_rank_0(self) -> bool:
        """True for the one process that writes, logs and decides for all."""
        return self.rank == 0

    def device_name(self, name: str) -> str:
        """The `device=` of this process: where all were given `cuda` (or auto finds CUDA), each takes its own."""
        if self.world_size > 1 and (name == "cuda" or (name == "auto" and torch.cuda.is_available())):
            return f"cuda:{self.local_rank}"
        return name

    def wait_for_rank_0(self, message: str = "") -> str:
        """The others wait until the first has come here; all return the first's message."""
        name = self._next_meeting()
        if self._store is None:
            return message
        store = self._store
        if self.is_rank_0:
            store.set(name, message)
            return message
        self._wait_until(lambda: store.check([name]))
        return store.get(name).decode()

    def wait_for_all(self) -> None:
        """The first waits until all others have come here; they go on at once."""
        name = self._next_meeting()
        if self._store is None:
            return
        store = self._store
        if self.is_rank_0:
            others = [f"{name}/{rank}" for rank in range(1, self.world_size)]
            self._wait_until(lambda: store.check(others))
        else:
            store.set(f"{name}/{self.rank}", "")

    def counter(self) -> Callable[[int], int]:
        """A count that all processes add to: it takes a number more and gives the sum of what all have added.

        All must make the same calls of this, in the same order as their meetings.
        """
        name = self._next_meeting()
        if self._store is None:
            return _OwnCount()
        return functools.partial(self._store.add, name)

    def check(self) -> None:
        """Raises InputError where another process has failed: to be called now and then in long work."""
        message = self.failure()
        if message is not None:
            raise InputError(message)

    def failure(self) -> str | None:
        """What is told of a process that has failed, be it this one; None while all work."""
        return None if self._store is None else _failure_in(self._store)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What ends this process inside the block ends the others as well, at their next check or wait."""
        self._parted = False
        try:
            yield
        except BaseException as error:
            if self._store is not None and not self._parted:
                try:
                    # The count decides between two that fail at the same time.
                    self.failed_first = self._store.add(f"{_FAILED} ranks", 1) == 1
                    if self.failed_first:
                        message = str(error) or type(error).__name__
                        self._store.set(_FAILED, f"stopped, because rank {self.rank} did: {message}")
                except DistError:
                    pass  # nobody is left to be told; the error itself goes on below
            raise

    def part(self) -> None:
        """From here on what ends this process is no failure of the others: the work is done, or all agreed to stop."""
        self._parted = True

    def leave(self) -> None:
        """The last meeting: the first process goes when all have come, the others after it, and none waits for long.

        So the first one, which may be host of the store, is there as long as anybody needs it.
        """
        if self._store is None:
            return
        deadline = time.monotonic() + LEAVING_SECONDS
        name = self._next_meeting()
        try:
            self._store.add(name, 1)
            while self.is_rank_0 and self._store.add(name, 0) < self.world_size and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
            if self.is_rank_0:
                self._store.set(f"{name}/first", "")
            while not self._store.check([f"{name}/first"]) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
        except DistError:
            pass  # the first has gone, and the store with it

    def shared_store(self, name: str) -> Store:
        """The store under a prefix of its own, for one use; all processes must ask for the same ones in one order."""
        assert self._store is not None
        return PrefixStore(f"{name}-{self._next_meeting()}", self._store)

    def watchdog(self, is_writing: Callable[[], bool]) -> Watchdog:
        """Watches over the failures of others, while this process may be where it cannot look itself."""
        assert self._store is not None
        return Watchdog(self._store.clone(), self.is_rank_0, is_writing)  # type: ignore[attr-defined]

    def _next_meeting(self) -> str:
        self._num_meetings += 1
        return f"meeting-{self._num_meetings}"

    def _wait_until(self, reached: Callable[[], bool]) -> None:
        while True:
            self.check()
            if reached():
                return
            time.sleep(_POLL_SECONDS)


class _OwnCount:
    """What `Ranks.counter` is where there is nobody else."""

    def __init__(self) -> None:
        self._sum = 0

    def __call__(self, number: int) -> int:
        self._sum += number
        return self._sum


@contextmanager
def report_once(ranks: Ranks) -> Iterator[None]:
    """Around a script's work: an error that ends all is told by the process it is of, and by the first one.

    The others, which only say that they stop, exit with code 1 and no word.
    """
    try:
        yield
    except InputError as error:
        if ranks.world_size > 1 and not ranks.failed_first and not ranks.is_rank_0:
            raise SystemExit(1) from error
        raise


def fresh_store(store: Store, rank: int, world_size: int) -> Store:
    """The store under a prefix that nobody has used before, the same for all processes.

    torchrun keeps its store when it starts failed processes again, and how often it did is not the same number on all
    machines: what the ones before left there must not be taken for word of the living. So each other process says
    hello with a number of its own, and the first answers to that number with the prefix, until all have heard it.
    Raises InputError where they do not come together.
    """
    own = secrets.token_hex(8)
    deadline = time.monotonic() + MEETING_SECONDS

    def wait() -> None:
        if time.monotonic() > deadline:
            raise InputError(f"the {world_size} processes did not all come within {MEETING_SECONDS:.0f} seconds")
        time.sleep(_POLL_SECONDS)

    if rank > 0:
        store.set(f"hello-{rank}", own)
        while not store.check([f"welcome-{own}"]):
            wait()
        prefix = store.get(f"welcome-{own}").decode()
        store.add(f"heard-{prefix}", 1)
        return PrefixStore(prefix, store)
    while store.add(f"heard-{own}", 0) < world_size - 1:
        for hello in (f"hello-{other}" for other in range(1, world_size)):
            if store.check([hello]):
                store.set(f"welcome-{store.get(hello).decode()}", own)
        wait()
    return PrefixStore(own, store)


class Watchdog(threading.Thread):
    """Ends this process where another has failed and this one does not notice, as in a collective that never returns.

    store: a connection of its own, since another may be waiting. speaks: whether it says why. is_writing: whether
    something is on its way to the disk that would be lost with the process, such as a checkpoint.
    """

    def __init__(self, store: Store, speaks: bool, is_writing: Callable[[], bool] = lambda: False) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._store = store
        self._speaks = speaks
        self._is_writing = is_writing
        self._dismissed = threading.Event()

    def run(self) -> None:
        while not self._dismissed.wait(WATCH_SECONDS):
            message = _failure_in(self._store)
            if message is not None:
                if not self._ends_by_itself():
                    self._end_process(message)
                return

    def dismiss(self) -> None:
        """To be called when the work has ended well."""
        self._dismissed.set()
        self.join()

    def _ends_by_itself(self) -> bool:
        """Whether it is dismissed in time: within the grace after the last write, and the limit of all writing."""
        heard = idle_since = time.monotonic()
        while time.monotonic() < min(idle_since + GRACE_SECONDS, heard + WRITING_SECONDS):
            if self._dismissed.wait(min(WATCH_SECONDS, GRACE_SECONDS)):
                return True
            if self._is_writing():
                idle_since = time.monotonic()
        return False

    def _end_process(self, message: str) -> None:
        if self._speaks:
            log.error("%s", message)
        logging.shutdown()
        os._exit(1)


def _failure_in(store: Store) -> str | None:
    try:
        return store.get(_FAILED).decode() if store.check([_FAILED]) else None
    except DistError:
        return _ENDED


@functools.cache
def current_ranks() -> Ranks:
    """This process's place, found once: its meetings are counted over the whole life of the process."""
    return Ranks.from_environment()
