"""Signal handlers of all commands.

SIGINT (Ctrl-C), SIGTERM (sent by schedulers), SIGHUP (sent when a terminal or ssh connection is closed), SIGUSR1 and
SIGUSR2 (sent by Slurm and by submitit shortly before a job's time limit) stop a command. The handler depends on what
the command is doing:

- `exit_while_loading` prints one line and ends the process while a script imports its libraries. Importing this module
  installs it, so scripts import this module first.
- `interrupt_on_signals` raises `Interrupted` while a command works, as Ctrl-C raises KeyboardInterrupt.
- `explain_interrupts` does the same before the first update of a training and after the last, and tells how to resume.
- `StopRequest` records a signal during the updates, so that the training loop can finish its update and save.
- `ignore_signals` ignores the signals that torchrun sends after all processes of a job have agreed to stop.
- `block_signals_in_children` keeps worker processes from receiving signals that their parent handles.

For one closed terminal, the shell and the kernel may both send SIGHUP, so after the first one further ones are ignored.
If SIGHUP is ignored from the start, as by nohup, it stays ignored.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from gnmt.errors import Interrupted
from gnmt.logs import leave_closed_terminal

log = logging.getLogger(__name__)

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGUSR1: 75, signal.SIGUSR2: 75}
"""Exit code of a command for each signal that stops it: 128 + N, as shells report it, and 75 for the warnings SIGUSR1
and SIGUSR2. No other outcome of a command has the code 75 (EX_TEMPFAIL of sysexits.h, "try again"), so a batch script
can requeue its job."""

SIGNALS = tuple(EXIT_CODES)
"""The signals that stop a command."""


def exit_code_of(interruption: KeyboardInterrupt) -> int:
    """Return the exit code of a command that this exception ends."""
    return interruption.exit_code if isinstance(interruption, Interrupted) else EXIT_CODES[signal.SIGINT]


def interruption(number: int, consequence: str, *, agreed: bool = False) -> Interrupted:
    """Return the exception for a signal; its message is the signal's name and the consequence."""
    received = signal.Signals(number)
    return Interrupted(f"{received.name}: {consequence}", EXIT_CODES[received], agreed=agreed, number=received)


Handler = Callable[[int, FrameType | None], object]
Handlers = dict[signal.Signals, Any]


def _install(handler: Handler, replaced: Collection[Any] | None = None) -> Handlers:
    """Handle SIGNALS by a function, which calls `_received` first, and return the previous handlers.

    If `replaced` is given, other handlers stay. Outside the main thread, where Python cannot install any, all stay.
    """
    previous: Handlers = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            current = signal.getsignal(number)
            is_ignored_hangup = number == signal.SIGHUP and current is signal.SIG_IGN
            if not is_ignored_hangup and (replaced is None or current in replaced):
                previous[number] = signal.signal(number, handler)
    return previous


def _received(number: int) -> signal.Signals:
    """Return the signal that a handler has received. After a SIGHUP, ignore further ones and the closed terminal."""
    global _num_handled
    _num_handled += 1
    received = signal.Signals(number)
    if received == signal.SIGHUP:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        leave_closed_terminal()
    return received


_num_handled = 0


class ArrivedSignals:
    """Record SIGNALS as they arrive. Python calls their handlers later, when the main thread leaves its C++ code.

    Another thread can thus find out that the main thread is blocked. Pass `writer` to `signal.set_wakeup_fd`.
    """

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self.writer, False)
        self._handled_before = _num_handled
        self._arrived: list[int] = []

    @property
    def total(self) -> int:
        """The number of signals that have arrived."""
        return len(self._arrived)

    def unhandled(self) -> list[int]:
        """Return the signals that have arrived and whose handler has not been called yet."""
        with suppress(BlockingIOError):
            self._arrived += [number for number in os.read(self._reader, 1 << 12) if number in SIGNALS]
        return self._arrived[_num_handled - self._handled_before :]

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._reader)
        os.close(self.writer)


def _restore(previous: Handlers) -> None:
    """Restore handlers. A signal that is ignored by now stays ignored, see `_received` and `ignore_signals`."""
    for number, handler in previous.items():
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


# Loading

_has_worked = False  # set by the first `interrupt_on_signals`


def exit_while_loading(number: int, frame: FrameType | None) -> NoReturn:
    """Print one line and end the process. An exception might be caught by the library that is being imported.

    This handles signals between the jobs of a sweep too, and those that torchrun sends when the work has ended.
    """
    received = _received(number)
    message = "interrupted" if received == signal.SIGINT else f"{received.name}: stopped"
    with suppress(OSError):
        os.write(2, f"{message}{'' if _has_worked else ' while loading: nothing was done'}\n".encode())
    os._exit(EXIT_CODES[received])


def _install_exit_while_loading() -> None:
    """Install `exit_while_loading` if the program is a script of this project; replace only default handlers."""
    program = getattr(sys.modules["__main__"], "__file__", None)
    scripts = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "scripts")
    if program is not None and os.path.dirname(os.path.abspath(program)) == scripts:
        _install(exit_while_loading, replaced=(signal.SIG_DFL, signal.default_int_handler))


_install_exit_while_loading()


# All commands


@contextmanager
def interrupt_on_signals() -> Iterator[None]:
    """Raise Interrupted at a signal inside this context; at SIGINT, KeyboardInterrupt.

    The handlers of a surrounding program stay. At the end, messages can be printed even if the terminal was closed.
    """

    global _has_worked
    _has_worked = True

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        received = _received(number)
        raise KeyboardInterrupt if received == signal.SIGINT else interruption(received, "stopped")

    previous = _install(interrupt, replaced=(signal.SIG_DFL, signal.default_int_handler, exit_while_loading))
    try:
        yield
    finally:
        _restore(previous)
        leave_closed_terminal()


# Training


class Abandoned(BaseException):
    """Raised when a signal breaks off work that can be repeated after a resume."""


class StopRequest:
    """Context that records the first signal as a request to stop, and raises at the second.

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
        self._previous = _install(self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _restore(self._previous)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        received = _received(number)
        if self.received is not None:
            if received == signal.SIGHUP:
                return  # the run is stopping already, and then its terminal was closed
            raise interruption(number, "stopped at once, nothing more was saved")
        self.received = received
        log.warning("%s: stopping; this update is finished and saved (a second signal stops at once)", received.name)
        if self._abandoning:
            raise Abandoned


def agreed_stop(number: signal.Signals, message: str) -> Interrupted:
    """Return the exception that ends a training after a stop request; its message begins with the signal's name."""
    return interruption(number, message, agreed=True)


def describe_stop(step: int, saved_step: int | None) -> str:
    """Return the message for a training that stopped after update `step`.

    `saved_step` is the update of the newest checkpoint, None if there is none.
    """
    if saved_step is None:
        return f"stopped after update {step}, no checkpoint could be written: the same command starts from scratch"
    return f"stopped after update {step}, saved up to {saved_step}: the same command resumes from there"


@contextmanager
def explain_interrupts(has_checkpoint: Callable[[], bool]) -> Iterator[None]:
    """Raise Interrupted at a signal inside this context; its message tells from where the same command resumes.

    `has_checkpoint()` returns True if the run has a checkpoint to resume from. During the updates, a `StopRequest`
    replaces this handler. If a surrounding program handles the signal, its handler is called when the run has stopped:
    that of submitit queues the job again.
    """

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        received = _received(number)
        consequence = (
            "interrupted between updates: the same command resumes from the newest checkpoint"
            if has_checkpoint()
            else "interrupted before the first update: nothing is trained yet, and the same command starts from scratch"
        )
        raise interruption(received, consequence)

    previous = _install(interrupt)
    try:
        yield
    except Interrupted as stop:
        _restore(previous)
        handler = previous.get(stop.number)
        is_own = handler is signal.default_int_handler or getattr(handler, "__module__", None) == __name__
        if callable(handler) and not is_own:
            log.warning("%s", stop)  # the handler may end the process
            handler(stop.number, None)
        raise
    finally:
        _restore(previous)


def ignore_signals() -> None:
    """Ignore further signals for the rest of the process.

    As soon as one process has ended, torchrun sends SIGTERM to the others. After an agreed stop, this signal must not
    count as a second request.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


# Worker processes


@contextmanager
def block_signals_in_children() -> Iterator[None]:
    """Block all SIGNALS but SIGTERM in child processes that are started inside this context.

    Terminals and schedulers send them to all processes of a job. The parent handles them and ends its children.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {*SIGNALS} - {signal.SIGTERM})  # children inherit the mask
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
