"""Signal handlers of all commands.

SIGINT (Ctrl-C), SIGTERM (sent by schedulers) and SIGUSR1 (sent by Slurm shortly before a job's time limit) stop a
command. The handler depends on what the command is doing:

- `exit_while_loading` prints one line and ends the process while a script imports its libraries. Importing this module
  installs it, so scripts import this module first.
- `explain_interrupts` raises `Interrupted` with a message before the first update of a training and after the last.
- `StopRequest` records a signal during the updates, so that the training loop can finish its update and save.
- `ignore_signals` ignores the signals that torchrun sends after all processes of a job have agreed to stop.
- `interrupt_on_sigterm` makes SIGTERM raise an exception during translation, as Ctrl-C does.
- `block_signals_in_children` keeps worker processes from receiving signals that their parent handles.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import NoReturn, Self

from gnmt.errors import Interrupted

log = logging.getLogger(__name__)

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 75}
"""Exit code of a command for each signal that stops it: 128 + N, as shells report it, and 75 for SIGUSR1. No other
outcome of a command has the code 75 (EX_TEMPFAIL of sysexits.h, "try again"), so a batch script can requeue its job."""

SIGNALS = tuple(EXIT_CODES)
"""The signals that stop a command."""


def exit_code_of(interruption: KeyboardInterrupt) -> int:
    """Return the exit code of a command that this exception ends."""
    return interruption.exit_code if isinstance(interruption, Interrupted) else EXIT_CODES[signal.SIGINT]


# Loading


def exit_while_loading(number: int, frame: FrameType | None) -> NoReturn:
    """Print one line and end the process. An exception might be caught by the library that is being imported."""
    received = signal.Signals(number)
    if received == signal.SIGINT:
        message = "interrupted while loading: nothing was done"
    else:
        message = f"{received.name}: stopped while no training was running: the same command resumes"
    os.write(2, f"{message}\n".encode())
    os._exit(EXIT_CODES[received])


def restore_ctrl_c() -> None:
    """Make Ctrl-C raise KeyboardInterrupt again. Scripts call this when their imports are done."""
    if signal.getsignal(signal.SIGINT) is exit_while_loading:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _install_exit_while_loading() -> None:
    """Install `exit_while_loading` if the program is a script of this project; replace only default handlers.

    train.py handles SIGTERM and SIGUSR1 too, because its batch jobs are requeued. It keeps these two handlers after
    loading, for the time before and between trainings.
    """
    program = getattr(sys.modules["__main__"], "__file__", None)
    scripts = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "scripts")
    if program is None or os.path.dirname(os.path.abspath(program)) != scripts:
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, exit_while_loading)
    if os.path.basename(program) == "train.py":
        for number in (signal.SIGTERM, signal.SIGUSR1):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, exit_while_loading)


_install_exit_while_loading()


# Training


class Abandoned(BaseException):
    """Raised when a signal breaks off work that can be repeated after a resume."""


class StopRequest:
    """Context that records the first SIGINT, SIGTERM or SIGUSR1 as a request to stop, and raises at the second.

    The training loop reads `received` after every update. If it is set, the loop saves and raises `agreed_stop(...)`.
    The second signal raises Interrupted at once.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        """The first signal that this process received; None if there was none."""
        self._abandoning = False

    @contextmanager
    def abandoning(self) -> Iterator[None]:
        """Raise Abandoned at the first signal inside this context, or at once if one was received before."""
        try:
            self._abandoning = True
            if self.received is not None:
                raise Abandoned
            yield
        finally:
            self._abandoning = False

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        received = signal.Signals(number)
        if self.received is not None:
            raise Interrupted(f"{received.name}: stopped at once, nothing more was saved", EXIT_CODES[received])
        self.received = received
        log.warning("%s: stopping; this update is finished and saved (a second signal stops at once)", received.name)
        if self._abandoning:
            raise Abandoned


def agreed_stop(number: signal.Signals, message: str) -> Interrupted:
    """Return the exception that ends a training after a stop request; its message begins with the signal's name."""
    return Interrupted(f"{number.name}: {message}", EXIT_CODES[number], agreed=True)


def describe_stop(step: int, saved_step: int) -> str:
    """Return the message for a training that stopped after update `step`.

    `saved_step` is the update of the newest checkpoint, 0 if there is none.
    """
    if not saved_step:
        return f"stopped after update {step}, no checkpoint could be written: the same command starts from scratch"
    return f"stopped after update {step}, saved up to {saved_step}: the same command resumes from there"


@contextmanager
def explain_interrupts(has_checkpoint: Callable[[], bool]) -> Iterator[None]:
    """Raise Interrupted at a signal inside this context; its message tells from where the same command resumes.

    `has_checkpoint()` returns True if the run has a checkpoint to resume from. During the updates, a `StopRequest`
    replaces this handler.
    """

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        received = signal.Signals(number)
        consequence = (
            "interrupted between updates: the same command resumes from the newest checkpoint"
            if has_checkpoint()
            else "interrupted before the first update: nothing is trained yet, and the same command starts from scratch"
        )
        raise Interrupted(f"{received.name}: {consequence}", EXIT_CODES[received])

    previous = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            if signal.getsignal(number) is interrupt:  # after `ignore_signals`, the signal stays ignored
                signal.signal(number, handler)


def ignore_signals() -> None:
    """Ignore further signals for the rest of the process.

    As soon as one process has ended, torchrun sends SIGTERM to the others. After an agreed stop, this signal must not
    count as a second request.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


# Translation and preprocessing


@contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
    """Raise Interrupted at a SIGTERM inside this context.

    Do nothing if the surrounding program has its own handler, or outside the main thread, where Python cannot install
    handlers.
    """
    is_main_thread = threading.current_thread() is threading.main_thread()
    if not is_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise Interrupted("SIGTERM: stopped", EXIT_CODES[signal.SIGTERM])

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def block_signals_in_children() -> Iterator[None]:
    """Block SIGINT and SIGUSR1 in child processes that are started inside this context.

    Terminals and schedulers send both to all processes of a job. The parent handles them and ends its children.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGUSR1})  # children inherit the mask
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
