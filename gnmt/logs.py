"""Logging to stderr and to the run's log file, progress bars, and waits that say what they wait for.

`configure_logging` installs both log handlers. Log lines are printed above a progress bar that is being drawn. tqdm is
imported only when the first bar is made, so that commands without a bar start faster.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

NOTICE_SECONDS = 10.0
"""Time after which `wait_for` says for the first time what it waits for."""

_POLL_SECONDS = 0.1


def configure_logging(run_file: Path | None = None) -> None:
    """Send log messages of level INFO and above, and Python's warnings, to stderr and to the end of `run_file`.

    In a distributed job, ranks other than 0 print only warnings and errors. A second call, as for the next job of a
    sweep, replaces the handlers of the first.
    """
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, StderrHandler | RunFileHandler):
            root.removeHandler(handler)
            handler.close()
    stderr_handler = StderrHandler()
    stderr_handler.setFormatter(StderrFormatter())
    stderr_handler.setLevel(logging.WARNING if own_rank() else logging.INFO)
    root.addHandler(stderr_handler)
    if run_file is not None:
        run_file.parent.mkdir(parents=True, exist_ok=True)
        file_handler = RunFileHandler(run_file, encoding="utf-8", errors="backslashreplace")
        file_handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(file_handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)


def note_in_run_file(message: str, level: int = logging.INFO) -> None:
    """Write a message to the run's log file only, if there is one. Use it for text that is printed in another way."""
    record = logging.LogRecord("gnmt", level, __file__, 0, message, None, None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, RunFileHandler):
            handler.handle(record)


def leave_closed_terminal() -> None:
    """Send stdout and stderr to /dev/null if they are a terminal that was closed, such as that of an ended ssh session.

    Each write to it would raise an OSError, and so would the flush of what is buffered.
    """
    for descriptor in (1, 2):
        try:
            termios.tcgetattr(descriptor)
        except termios.error as error:
            if error.args[0] == errno.EIO:  # other errors: a file, a pipe, or closed
                with open(os.devnull, "wb") as null:
                    os.dup2(null.fileno(), descriptor)


def own_rank() -> int:
    """Return the rank of this process in a torchrun job; 0 outside of one."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() else 0  # gnmt.distributed reports any other value


class StderrHandler(logging.Handler):
    """Write log lines to the current `sys.stderr`, above a progress bar if one is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            if "tqdm" in sys.modules:
                from tqdm import tqdm

                tqdm.write(text, file=sys.stderr)
            else:
                print(text, file=sys.stderr)
        except OSError:  # logging would try to report it on stderr
            leave_closed_terminal()
        except RuntimeError:  # a signal's handler logs, called inside of a flush of stderr: "reentrant call"
            with suppress(OSError):
                os.write(2, f"{text}\n".encode(errors="backslashreplace"))
        except Exception:
            self.handleError(record)


class StderrFormatter(logging.Formatter):
    """Format the message only. Warnings and errors begin with their level, and with the rank if it is not 0."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno < logging.WARNING:
            return text
        if rank := own_rank():
            text = f"rank {rank}: {text}"
        return f"{record.levelname.lower()}: {text}"


class RunFileHandler(logging.FileHandler):
    """Write log lines to the run's log file. If a write fails, as on a full disk, warn once and stop writing.

    The file has no buffer. Python runs the handlers of signals while a buffer is flushed, and a log line of such a
    handler would then be refused as a reentrant call.
    """

    def _open(self) -> TextIOWrapper:
        raw = open(self.baseFilename, "ab", buffering=0)  # noqa: SIM115 (logging closes it)
        return TextIOWrapper(raw, encoding=self.encoding, errors=self.errors, write_through=True)

    def handleError(self, record: logging.LogRecord) -> None:
        logging.getLogger().removeHandler(self)
        with suppress(OSError):
            self.close()
        logging.getLogger(__name__).warning(
            "%s cannot be written (%s): further log lines appear on the screen only",
            self.baseFilename,
            sys.exc_info()[1],
        )


def progress_bar(
    iterable: Iterable[Any] | None = None,
    *,
    description: str | None = None,
    unit: str,
    total: int | None = None,
    initial: int = 0,
    unit_scale: bool = False,
    leave: bool = True,
    shown: bool = True,
) -> tqdm[Any]:
    """Return a progress bar that is drawn on stderr if stderr is a terminal.

    Args:
        iterable: Items to iterate over. If None, the caller counts with `bar.update(n)`.
        description: Text in front of the bar.
        unit: Name of one counted item.
        total: Number of items; None if unknown.
        initial: Number of items that are already done.
        unit_scale: If True, print large numbers as 1.2k or 3.4M.
        leave: If True, keep the finished bar on the screen.
        shown: If False, never draw the bar.
    """
    from tqdm import tqdm

    return tqdm(
        iterable,
        desc=description,
        total=total,
        leave=leave,
        disable=None if shown else True,  # None: draw on a terminal only
        unit=unit,
        unit_scale=unit_scale,
        initial=initial,
    )


def counter(bar: tqdm[Any]) -> Callable[[float], None]:
    """Return a function that adds a number of items to a bar's count. Parts of items add up and are shown rounded."""
    count = 0.0

    def add(number: float) -> None:
        nonlocal count
        count += number
        show_count(bar, count)

    return add


def show_count(bar: tqdm[Any], count: float) -> None:
    """Set a bar's count, rounded to one decimal."""
    rounded = round(count, 1)
    bar.n = int(rounded) if rounded == int(rounded) else rounded
    bar.update(0)


def wait_for(
    done: Callable[[float], bool],
    what: Callable[[], str],
    limit_seconds: float = math.inf,
    level: int = logging.WARNING,
) -> bool:
    """Wait until `done` returns True, and log a long wait, first after NOTICE_SECONDS and then ever more rarely.

    Signals interrupt the wait.

    Args:
        done: Waits for at most the given number of seconds; True if the wait is over.
        what: Names what is waited for.
        limit_seconds: After this time, `wait_for` returns False.
        level: Level of the log lines.
    """
    start, next_notice = time.monotonic(), NOTICE_SECONDS
    while True:
        waited = time.monotonic() - start
        if waited >= next_notice:
            logging.getLogger(__name__).log(level, "waiting for %s (%s so far)", what(), format_duration(waited))
            next_notice *= 2
        if done(max(0, min(next_notice, limit_seconds) - waited)):
            return True
        if waited >= limit_seconds:
            return False


def polled(reached: Callable[[], bool]) -> Callable[[float], bool]:
    """Return `done` of `wait_for` for a condition that must be polled."""

    def done(seconds: float) -> bool:
        if reached():
            return True
        time.sleep(min(seconds, _POLL_SECONDS))
        return False

    return done


def ended(thread: threading.Thread) -> Callable[[float], bool]:
    """Return `done` of `wait_for` for the end of a thread."""

    def done(seconds: float) -> bool:
        thread.join(seconds)
        return not thread.is_alive()

    return done


def format_duration(seconds: float) -> str:
    """Format a duration as MM:SS or, from one hour, as H:MM:SS."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:d}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes:02d}:{seconds:02d}"
