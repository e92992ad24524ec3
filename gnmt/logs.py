"""Logging to stderr and to the run's log file, and progress bars.

`configure_logging` installs both log handlers. A log line is printed above a progress bar that is being drawn. tqdm is
imported with the first bar.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def configure_logging(run_file: Path | None = None) -> None:
    """Send log messages of level INFO and above, and Python's warnings, to stderr and to the end of `run_file`.

    In a distributed job, ranks other than 0 show only warnings and errors. A second call, as for the next job of a
    sweep, replaces the handlers of the first.
    """
    root = logging.getLogger()
    for handler in list(root.handlers):
        if getattr(handler, "set_by_gnmt", False):
            root.removeHandler(handler)
            handler.close()
    stderr_handler = StderrHandler()
    stderr_handler.setFormatter(StderrFormatter())
    stderr_handler.setLevel(logging.WARNING if own_rank() else logging.INFO)
    handlers: list[logging.Handler] = [stderr_handler]
    if run_file is not None:
        run_file.parent.mkdir(parents=True, exist_ok=True)
        file_handler = RunFileHandler(run_file, encoding="utf-8")
        file_handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handlers.append(file_handler)
    for handler in handlers:
        handler.set_by_gnmt = True  # type: ignore[attr-defined]
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)


def note_in_run_file(message: str, level: int = logging.INFO) -> None:
    """Write a message to the run's log file alone, if there is one: for text that is printed elsewhere."""
    record = logging.LogRecord("gnmt", level, __file__, 0, message, None, None)
    for handler in logging.getLogger().handlers:
        if getattr(handler, "set_by_gnmt", False) and isinstance(handler, logging.FileHandler):
            handler.handle(record)


def own_rank() -> int:
    """Return this process's rank in a job of torchrun; 0 for a process that runs alone."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() else 0  # gnmt.distributed reports any other value


class StderrHandler(logging.Handler):
    """Write to the current `sys.stderr`, above a progress bar if one is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            if "tqdm" in sys.modules:
                from tqdm import tqdm

                tqdm.write(text, file=sys.stderr)
            else:
                print(text, file=sys.stderr)
        except Exception:
            self.handleError(record)


class StderrFormatter(logging.Formatter):
    """Format the message alone; warnings and errors begin with their level, and with the rank if it is not 0."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno < logging.WARNING:
            return text
        return f"{record.levelname.lower()}: {f'rank {rank}: ' if (rank := own_rank()) else ''}{text}"


class RunFileHandler(logging.FileHandler):
    """Write to the run's log file. When that fails, as on a full disk, warn once and write no more."""

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
    """Return a progress bar, which is drawn on stderr if that is a terminal.

    Args:
        iterable: Items to iterate over. Without it, the caller counts with `bar.update(n)`.
        description: Text in front of the bar.
        unit: Name of one counted item.
        total: Number of items, None if unknown.
        initial: Number of items that were done before.
        unit_scale: Print large numbers as 1.2k or 3.4M.
        leave: Keep the finished bar on the screen.
        shown: False never draws the bar.
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


def format_duration(seconds: float) -> str:
    """Return a duration as [H:]MM:SS."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:d}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes:02d}:{seconds:02d}"
