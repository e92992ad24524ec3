"""Signal handlers of all commands."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

from gnmt.errors import Interrupted

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 75}
"""How a stopped command ends. 128 + N as shells have it, but for SIGUSR1, with which Slurm announces the end of a job's
time: 75 is EX_TEMPFAIL of sysexits.h, "try again", which no other way to end gives."""

_TRAINING = "train.py"
_NOT_TRAINING = "stopped where nothing was being trained: the same command goes on"


def hand_over() -> None:
    """Ctrl-C raises KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> None:
    received = signal.Signals(number)
    said = "interrupted before it began" if received == signal.SIGINT else f"{received.name}: {_NOT_TRAINING}"
    os.write(2, f"{said}\n".encode())
    os._exit(EXIT_CODES[received])  # raised, it might be caught, or reported, by whatever is being imported


def _script() -> str | None:
    """The name of the program where it is one of scripts/."""
    program = getattr(sys.modules["__main__"], "__file__", None)
    scripts = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "scripts")
    inside = program is not None and os.path.dirname(os.path.abspath(program)) == scripts
    return os.path.basename(program) if program is not None and inside else None


if _script() is not None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)
for _number in (signal.SIGTERM, signal.SIGUSR1) if _script() == _TRAINING else ():
    if signal.getsignal(_number) is signal.SIG_DFL:
        signal.signal(_number, _leave)


log = logging.getLogger(__name__)


class Abandoned(BaseException):
    """Work that can be done again was broken off by a signal."""


def stop(number: signal.Signals, message: str) -> Interrupted:
    """What ends the command after a first signal: the message behind the signal's name, and its exit code."""
    return Interrupted(f"{number.name}: {message}", EXIT_CODES[number], agreed=True)


def describe_stop(step: int, saved_step: int) -> str:
    """What a signal after that update has left, and how to go on; saved_step: of the newest checkpoint, 0 for none."""
    if not saved_step:
        return f"stopped after update {step}, no checkpoint could be written: the same command begins again"
    return f"stopped after update {step}, saved up to {saved_step}: the same command continues from there"


@contextmanager
def saying_how_to_go_on(has_checkpoint: Callable[[], bool]) -> Iterator[None]:
    """Inside it, a signal outside of the training loop, which saves for itself, raises Interrupted with a message.

    has_checkpoint: whether the run has one to go on from.
    """

    def raise_interrupted(number: int, frame: FrameType | None) -> None:
        received = signal.Signals(number)
        left = (
            "interrupted between updates: the same command continues from the newest checkpoint"
            if has_checkpoint()
            else "interrupted before the first update: nothing was trained yet, and the same command begins again"
        )
        raise Interrupted(f"{received.name}: {left}", EXIT_CODES[received])

    previous = {number: signal.signal(number, raise_interrupted) for number in EXIT_CODES}
    try:
        yield
    finally:
        for number, handler in previous.items():
            if signal.getsignal(number) is raise_interrupted:  # and no processes that end together ignore it now
                signal.signal(number, handler)


class Interruption:
    """Inside it, a first SIGINT, SIGTERM or SIGUSR1 only sets `requested`; a second one interrupts at once.

    The training loop looks at `received` after every update, saves and raises `stop(...)` itself.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        """The first signal that came to this process."""
        self._abandoning = False

    @property
    def requested(self) -> bool:
        """Whether a signal asked this process to stop."""
        return self.received is not None

    @contextmanager
    def abandoning(self) -> Iterator[None]:
        """Inside it, a first signal (or one from before) does not wait: it raises Abandoned where the work is."""
        try:
            self._abandoning = True
            if self.requested:
                raise Abandoned
            yield
        finally:
            self._abandoning = False

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._request) for number in EXIT_CODES}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        received = signal.Signals(number)
        if self.requested:
            raise Interrupted(f"{received.name}: stopped at once, nothing more was saved", EXIT_CODES[received])
        self.received = received
        log.warning("%s: stopping, the state is saved after this update (again: at once, unsaved)", received.name)
        if self._abandoning:
            raise Abandoned
