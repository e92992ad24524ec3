"""Log handlers for stderr and for the run's log file."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm


class StderrHandler(logging.Handler):
    """Writes to the stderr of the moment, above a progress bar if one is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


class RunFileHandler(logging.FileHandler):
    """Writes to the run's file; where the disk is full it says so once, and nothing more."""

    def handleError(self, record: logging.LogRecord) -> None:
        logging.getLogger().removeHandler(self)
        with suppress(OSError):
            self.close()
        logging.getLogger(__name__).warning(
            "%s cannot be written (%s): the rest of the log goes to the screen alone",
            self.baseFilename,
            sys.exc_info()[1],
        )


class ShortFormatter(logging.Formatter):
    """The message alone, with its level where that is a warning or worse, and with the rank of any but the first."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno < logging.WARNING:
            return text
        return f"{record.levelname.lower()}: {f'rank {rank}: ' if (rank := own_rank()) else ''}{text}"


def own_rank() -> int:
    """This process's number among those that torchrun started; 0 for one that is alone."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() else 0  # what else it may hold is a message of gnmt.distributed


def configure_logging(run_file: Path | None = None) -> None:
    """Sends log messages of level INFO and above to stderr, and to the end of run_file where one is given.

    Of several processes the first speaks for all; of the others only warnings and errors are shown.
    Called again (the next job of a sweep), it replaces what it set up before. Python's warnings come along.
    """
    root = logging.getLogger()
    for handler in list(root.handlers):
        if getattr(handler, "set_by_gnmt", False):
            root.removeHandler(handler)
            handler.close()
    handlers: list[logging.Handler] = [StderrHandler()]
    handlers[0].setFormatter(ShortFormatter())
    handlers[0].setLevel(logging.WARNING if own_rank() else logging.INFO)
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
    """Writes to the run's file, if there is one, what is shown elsewhere: on stdout, or when the log's time is over."""
    record = logging.LogRecord("gnmt", level, __file__, 0, message, None, None)
    for handler in logging.getLogger().handlers:
        if getattr(handler, "set_by_gnmt", False) and isinstance(handler, logging.FileHandler):
            handler.handle(record)
