"""Several processes that share a piece of work, as torchrun starts them: who is who, and waiting for each other.

The processes meet in the key-value store that torchrun provides. Nothing here has a time limit: one may work for hours
while another waits. A process that fails tells the others before it ends.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.distributed import DistError, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from gnmt.types import InputError

_POLL_SECONDS = 0.1
_FAILED = "failed"


class Ranks:
    """This process among those of its job: `rank` of `world_size`, and `local_rank` on its machine.

    store: what they share; a process that is alone needs none. All ranks must make the same calls of `wait_for_first`
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

    @classmethod
    def from_environment(cls) -> Ranks:
        """What torchrun says in RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; alone without them."""
        try:
            world_size = int(os.environ.get("WORLD_SIZE", "1"))
            if world_size == 1:
                return cls()
            store, rank, world_size = next(rendezvous("env://"))
            return cls(rank, world_size, int(os.environ["LOCAL_RANK"]), store)
        except (KeyError, ValueError, DistError) as error:
            raise InputError(f"the processes cannot meet ({error}): start them with torchrun") from error

    @property
    def is_first(self) -> bool:
        """True for the one process that writes, logs and decides for all."""
        return self.rank == 0

    def device_name(self, name: str) -> str:
        """The `device=` of this process: where all were given `cuda` (or auto finds CUDA), each takes its own."""
        if self.world_size > 1 and (name == "cuda" or (name == "auto" and torch.cuda.is_available())):
            return f"cuda:{self.local_rank}"
        return name

    def wait_for_first(self) -> None:
        """The others wait until the first has come here."""
        name = self._next_meeting()
        if self._store is None:
            return
        store = self._store
        if self.is_first:
            store.set(name, "")
        else:
            self._wait_until(lambda: store.check([name]))

    def wait_for_all(self) -> None:
        """The first waits until all others have come here; they go on at once."""
        name = self._next_meeting()
        if self._store is None:
            return
        store = self._store
        if self.is_first:
            others = [f"{name}/{rank}" for rank in range(1, self.world_size)]
            self._wait_until(lambda: store.check(others))
        else:
            store.set(f"{name}/{self.rank}", "")

    def check(self) -> None:
        """Raises InputError where another process has failed: to be called now and then in long work."""
        if self._store is None:
            return
        try:
            failed = self._store.check([_FAILED])
        except DistError as error:
            raise InputError("the other processes have ended; the first error message says why") from error
        if failed:
            raise InputError(self._store.get(_FAILED).decode())

    @contextmanager
    def together(self) -> Iterator[None]:
        """What ends this process inside the block ends the others as well, at their next check or wait."""
        try:
            yield
        except BaseException as error:
            if self._store is not None:
                try:
                    if not self._store.check([_FAILED]):
                        message = str(error) or type(error).__name__
                        self._store.set(_FAILED, f"stopped, because rank {self.rank} did: {message}")
                except DistError:
                    pass  # nobody is left to be told; the error itself goes on below
            raise

    def _next_meeting(self) -> str:
        self._num_meetings += 1
        return f"meeting-{self._num_meetings}"

    def _wait_until(self, reached: Callable[[], bool]) -> None:
        while True:
            self.check()
            if reached():
                return
            time.sleep(_POLL_SECONDS)


@functools.cache
def current_ranks() -> Ranks:
    """This process's place, found once: its meetings are counted over the whole life of the process."""
    return Ranks.from_environment()
