"""Writing beside the training: a copy of the state is taken at once, the disk gets it while updates go on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from gnmt.types import Interrupted

log = logging.getLogger(__name__)

_THREAD_NAME = "checkpoint writer"


def snapshot(contents: Any) -> Any:
    """The same nested values with tensors copied to the CPU, so that updates may go on while they are written.

    Tensors that are the same memory (tied weights) stay one.
    """
    return _copied(contents, {})


def _copied(value: Any, copies: dict[tuple[Any, ...], Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = (value.data_ptr(), value.dtype, value.shape, value.stride(), value.device)
        if not value.numel() or key not in copies:
            copies[key] = value.detach().to("cpu", copy=True)
        return copies[key]
    if isinstance(value, Mapping):
        return {key: _copied(item, copies) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_copied(item, copies) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value


def is_writing() -> bool:
    """Whether any `BackgroundWriter` of this process has a write under way."""
    return any(thread.name == _THREAD_NAME for thread in threading.enumerate())


class BackgroundWriter:
    """One write at a time in a thread; the next one, and the end of the block, wait for it.

    What became of a write is said in the thread of the caller, by `poll` or `wait`: where it went well on_written is
    called; an OSError, such as a full disk, is logged, and costs a save and not the run; any other error is raised.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._what = ""
        self._remains = ""
        self._on_written: Callable[[], None] = lambda: None

    def start(self, write: Callable[[], object], what: str, on_written: Callable[[], None], *, has_older: bool) -> None:
        """Waits for the write before, then starts this one.

        what: its name, for the message of a failure. has_older: whether an older one of its kind stays after a failure.
        """
        self.wait()
        self._what, self._on_written, self._error = what, on_written, None
        self._remains = "the one before stays" if has_older else "there is none from before"
        # A daemon: where the process is told to end at once, nobody waits for the disk.
        self._thread = threading.Thread(target=self._run, args=(write,), name=_THREAD_NAME, daemon=True)
        self._thread.start()

    def poll(self) -> None:
        """Says what became of the write, if it has ended."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Waits for the write, if there is one, and says what became of it."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread, error = None, self._error
        if error is None:
            self._on_written()
        elif isinstance(error, OSError):
            log.error("%s was not written (%s); %s", self._what, error, self._remains)
        else:
            raise error

    def _run(self, write: Callable[[], object]) -> None:
        try:
            write()
        except BaseException as error:
            self._error = error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A second signal wants the end now; after a first one all was waited for before.
        if not isinstance(error, Interrupted):
            self.wait()
