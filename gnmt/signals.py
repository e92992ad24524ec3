"""Signal handlers of all commands.

SIGINT (Ctrl-C), SIGTERM (schedulers) and SIGUSR1 (Slurm, before the end of a job's time) stop a command. What a signal
does depends on what the command is doing:

- While a script imports its libraries, `exit_while_loading` prints one line and ends the process. Importing this module
  installs it, so scripts import this module first.
- During updates, `StopRequest` lets the training loop finish its update and save.
- Before and after the updates of a training, `explain_interrupts` raises `Interrupted` with a message.
- During translation, `interrupt_on_sigterm` makes SIGTERM raise as Ctrl-C does.
- Worker processes are started inside `block_signals_in_children`.
- When all processes of a job have agreed to stop, `ignore_signals` ignores what torchrun sends them.
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
"""The exit code of a command that a signal stopped: 128 + N as in shells, and 75 for SIGUSR1. 75 is EX_TEMPFAIL of
sysexits.h ("try again"); no other end of a command has it, so a batch script can queue its job again."""

SIGNALS = tuple(EXIT_CODES)


class Abandoned(BaseException):
    """A signal broke off work that can be repeated."""


def exit_code_of(interruption: KeyboardInterrupt) -> int:
    """Return the exit code of a command that this exception ends."""
    return interruption.exit_code if isinstance(interruption, Interrupted) else EXIT_CODES[signal.SIGINT]


# Training


class StopRequest:
    """Record a first SIGINT, SIGTERM or SIGUSR1 inside this context as a request to stop; interrupt at the second.

    The training loop reads `received` after every update, saves, and raises `agreed_stop(...)`.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        """The first signal that reached this process."""
        self._abandoning = False

    @contextmanager
    def abandoning(self) -> Iterator[None]:
        """Raise Abandoned at a first signal inside this context, or at once if one was received earlier."""
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

    saved_step: update of the newest checkpoint, 0 if there is none.
    """
    if not saved_step:
        return f"stopped after update {step}, no checkpoint could be written: the same command starts from scratch"
    return f"stopped after update {step}, saved up to {saved_step}: the same command continues from there"


@contextmanager
def explain_interrupts(has_checkpoint: Callable[[], bool]) -> Iterator[None]:
    """Raise Interrupted at a signal inside this context; the message says what the same command will do next.

    The training loop replaces this handler by a `StopRequest`.
    has_checkpoint: returns whether the run has a checkpoint to resume from.
    """

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        received = signal.Signals(number)
        consequence = (
            "interrupted between updates: the same command continues from the newest checkpoint"
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

    As soon as one process has ended, torchrun sends SIGTERM to the others. After an agreed stop this is no second
    request to stop.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


# Translation and preprocessing


@contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
    """Raise Interrupted at a SIGTERM inside this context.

    This does nothing if the surrounding program has a handler of its own, and nothing in threads other than the main
    one, which cannot install handlers.
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
    """Block SIGINT and SIGUSR1 in the child processes that are started inside this context.

    Terminals and schedulers send both to all processes of a job. The parent handles them and ends its children.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGUSR1})  # children inherit the mask
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


# Loading


def exit_while_loading(number: int, frame: FrameType | None) -> NoReturn:
    """Print one line and end the process: an exception might be caught by the library that is being imported."""
    received = signal.Signals(number)
    if received == signal.SIGINT:
        message = "interrupted before it began"
    else:
        message = f"{received.name}: stopped while no training was running: the same command resumes"
    os.write(2, f"{message}\n".encode())
    os._exit(EXIT_CODES[received])


def restore_ctrl_c() -> None:
    """Make Ctrl-C raise KeyboardInterrupt again; scripts call this once their imports are done."""
    if signal.getsignal(signal.SIGINT) is exit_while_loading:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _install_exit_while_loading() -> None:
    """Install the handler in scripts of this project alone, and only over the default handlers.

    SIGTERM and SIGUSR1 concern train.py, whose batch jobs are queued again. Their handler stays when loading is done,
    for the time before and between trainings.
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
